"""Compare how teacher files are loaded with the official loader of Teach-DETR."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import v2

from codetr.classes import ClassList
from codetr.data.annotations import CocoAnnotations
from codetr.data.augment import cropped, resize, transform
from codetr.data.collate import Collate
from codetr.data.sample import BoxSet, Sample
from codetr.data.teachers import Suppression, TeacherBoxes
from codetr.errors import UserError
from tools.parity.recorded import Recorded, read_arrays
from tools.parity.rules import Array
from tools.parity.table import Row, Tolerance, Tolerances, compare_all

LOADER = "loader_cases.npz"

TOLERANCES = Tolerances(
    arrays=Tolerance(absolute=1e-6), special={"scores": Tolerance(absolute=1e-7)}
)


def check_loader(recorded: Recorded) -> list[Row]:
    """Ground truth and merged teacher boxes of every recorded image and case."""
    folder = recorded.folder
    arrays = read_arrays(folder / LOADER)
    weights, seen = recorded.keys["ext_ann_weights"], recorded.keys["image_ids"]
    cases = list(dict.fromkeys(tuple(name.split("/")[:2]) for name in arrays))
    sizes = {
        int(number): tuple(map(int, arrays[f"{case}/{number}/size"]))
        for case, number in sorted(cases)
        if case == "plain"
    }
    annotations = _annotations(sizes, recorded.num_classes)
    files = [folder / f"teacher_{name}.json" for name in weights]
    rows: list[Row] = []
    for case, number in cases:
        merge = Suppression(
            weights=_numbers(case, r"weights_([\d.]+)_([\d.]+)") or list(weights.values())
        )
        image, place = int(number), f"{case}/{number}"
        boxes = TeacherBoxes(files, annotations, merge)(list(sizes).index(image))
        sample = _sample(recorded, sizes[image], boxes)
        values = _values(_moved(sample, case, arrays[f"{place}/size"]))
        rows += compare_all(values, arrays, TOLERANCES, f"{place}/")
        if case == "plain" and image in seen:  # the losses saw its teachers
            own = {f"target_{k}_{seen.index(image)}": v for k, v in values.items() if "ext_" in k}
            rows += recorded.rows(own, TOLERANCES)
    return rows


def _annotations(sizes: Mapping[int, tuple[int, ...]], num_classes: int) -> CocoAnnotations:
    """The recorded images without boxes; category ids equal class indices."""
    none = torch.zeros(0, dtype=torch.int64)
    return CocoAnnotations(
        path=Path(LOADER),
        classes=ClassList(
            names=tuple(map(str, range(num_classes))), category_ids=tuple(range(num_classes))
        ),
        image_ids=tuple(sizes),
        written_ids=tuple(sizes),
        file_names=tuple(map(str, sizes)),
        sizes=torch.tensor(list(sizes.values())),
        boxes=torch.zeros(0, 4),
        labels=none,
        crowd=none.bool(),
        sides=torch.zeros(0, 2),
        area=torch.zeros(0),
        ignore=none.bool(),
        annotation_ids=(),
        offsets=none.new_zeros(len(sizes) + 1),
    )


def _sample(recorded: Recorded, size: tuple[int, ...], teachers: tuple[BoxSet, ...]) -> Sample:
    """A black image with the ground truth of the recorded input of that size."""
    number = [tuple(own) for own in recorded.keys["sizes"]].index(size)
    inputs = recorded.inputs()
    return Sample(
        image=torch.zeros(3, *size, dtype=torch.uint8),
        targets=BoxSet.ground_truth(
            torch.from_numpy(inputs.boxes[number]), torch.from_numpy(inputs.labels[number])
        ),
        teachers=teachers,
        image_id=number,
        original_size=(size[0], size[1]),
    )


def _moved(sample: Sample, case: str, size: Array) -> Sample:
    """Apply the case's geometric operation with our augmentation's functions. A resize uses the
    recorded ``size`` (the official code rounds the long side down, ours to the nearest pixel).
    """
    if case == "hflip":
        return transform(sample, v2.RandomHorizontalFlip(1.0))
    if case.startswith("resize"):
        return resize(sample, (int(size[0]), int(size[1])))
    window = _numbers(case, r"crop_i(\d+)_j(\d+)_h(\d+)_w(\d+)")
    if window is not None:
        top, left, height, width = map(int, window)
        return cropped(sample, (top, left, height, width))
    if case == "plain" or case.startswith("weights"):
        return sample
    raise UserError(f"{LOADER}: unknown case {case}: this program knows no such operation")


def _numbers(case: str, pattern: str) -> list[float] | None:
    match = re.fullmatch(pattern, case)
    return None if match is None else [float(value) for value in match.groups()]


def _values(sample: Sample) -> dict[str, Any]:
    batch = Collate()([sample])
    (targets,), ((teacher,),) = batch.targets, batch.teachers
    return {
        "size": sample.size,
        "boxes": targets.boxes,
        "labels": targets.labels,
        "ext_boxes": teacher.boxes,
        "ext_labels": teacher.labels,
        "ext_scores": teacher.weights,
    }
