"""Compare masks after each transform of the training pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from codetr.data.augment import Apply, KeepVisible, cropped, resize
from codetr.data.collate import Collate
from codetr.data.mask_bounds import mask_bounds
from codetr.data.sample import BoxSet, Sample
from codetr.data.segmentation import read_segmentations
from tools.parity.recorded import ARRAYS, read_arrays
from tools.parity.table import Row, Tolerance, Tolerances, compare, compare_all, compare_bits

BOXES = Tolerances(arrays=Tolerance(absolute=1e-4))
DIVISOR = 32


def check_mask_pipeline(folder: Path) -> list[Row]:
    """Masks, boxes and labels after every step of both chains; masks must be equal."""
    case = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    arrays = read_arrays(folder / ARRAYS)
    samples = _steps(case)
    rows = []
    for step, sample in samples.items():
        targets = sample.targets
        assert targets.masks is not None
        masks = targets.masks.numpy()
        recorded = arrays[f"{step}/masks"]
        found = {"boxes": targets.boxes, "labels": targets.labels}
        bits = np.unpackbits(recorded, axis=-1, count=case["steps"][step]["mask_shape"][-1])
        rows += [
            compare_bits(f"{step}/masks", masks, bits),
            compare(f"{step}/areas", masks.sum(axis=(1, 2)), case["steps"][step]["areas"]),
            *compare_all(found, arrays, BOXES, f"{step}/"),
        ]
    return rows


def _steps(case: dict[str, Any]) -> dict[str, Sample]:
    """The sample after every recorded step."""

    def size(step: str) -> tuple[int, int]:
        height, width = case["steps"][step]["img_shape"][:2]
        return height, width

    def window(name: str) -> tuple[int, int, int, int]:
        top, left = case[f"{name}_offset_hw"]
        height, width = case[f"{name}_size_hw"]
        return top, left, height, width

    samples = {"load": _loaded(case)}
    samples["resize_up"] = resize(samples["load"], size("resize_up"))
    samples["flip"] = Apply(v2.RandomHorizontalFlip(1.0))(samples["resize_up"])
    samples["crop"] = cropped(samples["flip"], window("crop"))
    samples["resize_down"] = resize(samples["crop"], size("resize_down"))
    samples["pad"] = _padded(samples["resize_down"])
    samples["lsj_crop"] = _bounded(cropped(samples["resize_up"], window("lsj_crop")))
    samples["lsj_filter"] = KeepVisible(1e-2)(samples["lsj_crop"])
    return samples


def _loaded(case: dict[str, Any]) -> Sample:
    height, width = case["image"]
    entries = [{"id": i, "segmentation": s} for i, s in enumerate(case["segmentations"])]
    count = len(entries)
    outlines = read_segmentations(
        entries,
        torch.zeros(count, dtype=torch.bool),
        torch.tensor([[height, width]] * count),
        Path("cases.json"),
    )
    boxes = torch.tensor(case["boxes"], dtype=torch.float32)
    found = BoxSet.ground_truth(boxes, torch.tensor(case["labels"]))
    return Sample(
        image=torch.zeros(3, height, width, dtype=torch.uint8),
        targets=replace(found, masks=outlines.masks(range(count), (height, width))),
        image_id=0,
        original_size=(height, width),
    )


def _padded(sample: Sample) -> Sample:
    """With masks padded as by collation."""
    (targets,) = Collate(size_divisor=DIVISOR)([sample]).targets
    return replace(sample, targets=replace(sample.targets, masks=targets.masks))


def _bounded(sample: Sample) -> Sample:
    """With the bounding boxes of the remaining masks, zeros where nothing remains."""
    masks: Tensor | None = sample.targets.masks
    assert masks is not None
    return replace(sample, targets=replace(sample.targets, boxes=mask_bounds(masks)))
