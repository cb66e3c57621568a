"""Mask AP against pycocotools, on real objects; LVIS against its own box AP."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from faster_coco_eval.core import mask as rle
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from warm import run_ranks

from codetr.classes import ClassList
from codetr.data.annotations import load_annotations
from codetr.errors import UserError
from codetr.evaluation import CocoEvaluator, lvis_evaluator
from codetr.evaluation.encoding import encode, run_lengths
from codetr.masks import Masks
from codetr.structures import Detections, ImageInfo

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
CELLS = 28
VAL = "data/coco_tiny/annotations/instances_val2017.json"

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def detections(path: Path, images: int = 20) -> tuple[ClassList, dict[int, tuple]]:
    """By image id its info and what was found: moved objects with noisy masks, some twice, some of
    another class; a mask's score has nothing to do with that of its box.
    """
    annotations = load_annotations(path, segmentations=True)
    generator = torch.Generator().manual_seed(0)
    found = {}
    for index in range(images):
        truth = annotations.targets(index)
        size = tuple(annotations.sizes[index].tolist())
        twice = torch.arange(len(truth)).repeat(2)
        chosen = twice[torch.rand(len(twice), generator=generator) < 0.7]
        wh = (truth.boxes[:, 2:] - truth.boxes[:, :2])[chosen].repeat(1, 2)
        boxes = truth.boxes[chosen] + 0.05 * wh * torch.randn(wh.shape, generator=generator)
        boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:] - 1), boxes[:, 2:]], dim=1)
        labels = truth.labels[chosen].clone()
        wrong = torch.rand(len(labels), generator=generator) < 0.1
        labels[wrong] = 0
        corners = boxes.clamp(min=0).int().tolist()
        cut = [
            mask[y0 : y1 + 1, x0 : x1 + 1].float()
            for mask, (x0, y0, x1, y1) in zip(truth.masks[chosen], corners, strict=True)
        ]
        cells = [torch.nn.functional.interpolate(m[None, None], (CELLS, CELLS))[0, 0] for m in cut]
        noise = torch.rand(len(chosen), CELLS, CELLS, generator=generator)
        cells = torch.stack([torch.zeros(CELLS, CELLS), *cells])[1:]
        info = ImageInfo(
            image_id=annotations.image_ids[index], original_size=size, scale=(1.0, 1.0)
        )
        scores = torch.rand(2, len(chosen), generator=generator)
        found[info.image_id] = (
            info,
            Detections(
                boxes_xyxy_px=boxes,
                scores=scores[0],
                labels=labels,
                cells=Masks(probabilities=0.7 * cells + 0.3 * noise, scores=scores[1]),
            ),
        )
    return annotations.classes, found


def reference(path: Path, records: Path, kind: str, images: list[int]) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        measured = COCOeval(truth, truth.loadRes(str(records)), kind)
        measured.params.imgIds = images
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return dict(zip(NAMES, measured.stats.tolist(), strict=True))


def test_numbers_equal_pycocotools(shared: Path, tmp_path: Path) -> None:
    path = shared / VAL
    classes, found = detections(path)
    evaluator = CocoEvaluator(path, classes, masks=True)
    for info, one in found.values():
        evaluator.update([one], [info])
    numbers = evaluator.compute()
    evaluator.write_predictions(tmp_path / "boxes.json")
    evaluator.write_mask_predictions(tmp_path / "masks.json")
    expected = reference(path, tmp_path / "masks.json", "segm", list(found))
    assert 0.2 < expected["AP"] < 0.9
    assert {k: numbers[f"mask_{k}"] for k in NAMES} == pytest.approx(expected, abs=1e-12)
    boxes = reference(path, tmp_path / "boxes.json", "bbox", list(found))
    assert {k: numbers[k] for k in NAMES} == pytest.approx(boxes, abs=1e-12)
    assert numbers["AP"] != pytest.approx(numbers["mask_AP"], abs=1e-3)
    assert "masks\n" in evaluator.table()
    evaluator.write_metrics(tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text())["mask_AP"] == numbers["mask_AP"]


def test_run_lengths_are_the_pasted_pixels(shared: Path) -> None:
    from pycocotools import mask as rle

    _, found = detections(shared / VAL, images=4)
    for info, one in found.values():
        bitmaps = one.bitmaps(info.original_size).numpy()
        for encoded, bitmap in zip(
            run_lengths(encode(one, info.original_size)), bitmaps, strict=True
        ):
            assert np.array_equal(rle.decode(encoded).astype(bool), bitmap)


def _fill(path: Path, first: int | None, last: int | None) -> dict[str, float]:
    classes, found = detections(path, images=9)
    evaluator = CocoEvaluator(path, classes, masks=True)
    for info, one in list(found.values())[first:last]:
        evaluator.update([one], [info])
    return evaluator.compute()


def _rank(rank: int, folder: Path, path: Path) -> None:
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    results = {
        "uneven": _fill(path, 3 * rank, 3 + 6 * rank),
        "one without": _fill(path, 9 * rank, None),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(shared: Path, tmp_path: Path) -> None:
    expected = _fill(shared / VAL, None, None)
    run_ranks(_rank, (tmp_path, shared / VAL), 2)
    for rank in range(2):
        results = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert results == {"uneven": expected, "one without": expected}


def _rectangles(path: Path, lvis: bool) -> dict[int, Detections]:
    """Objects that fill their boxes, of whole pixels: masks of ones are the boxes, where cells are
    so small that reading between them rounds no corner.
    """
    rng = np.random.default_rng(5)
    annotations, found = [], {}
    for image in range(1, 16):
        rows = []
        for _ in range(int(rng.integers(0, 9))):
            x, y, w, h = (int(v) for v in (*rng.integers(0, 60, 2), *rng.integers(4, 40, 2)))
            label = int(rng.integers(3))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
            for _ in range(int(rng.integers(0, 3))):
                dx, dy = rng.integers(-3, 4, 2)
                box = [x + dx, y + dy, x + w + dx, y + h + dy]
                rows.append([*np.clip(box, 0, 100), rng.random(), label])
        table = torch.tensor(np.array(rows), dtype=torch.float32).reshape(-1, 6)
        found[image] = Detections(
            boxes_xyxy_px=table[:, :4],
            scores=table[:, 4],
            labels=table[:, 5].long(),
            cells=Masks(probabilities=torch.ones(len(table), 128, 128), scores=table[:, 4]),
        )
    extra = {"neg_category_ids": [2], "not_exhaustive_category_ids": [1]} if lvis else {}
    content = {
        "images": [{"id": i, "height": 100, "width": 100, **extra} for i in range(1, 16)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"c{i}", "frequency": "rcf"[i - 1]} for i in (1, 2, 3)],
    }
    path.write_text(json.dumps(content))
    return found


@pytest.mark.parametrize("lvis", [False, True])
@pytest.mark.parametrize("limit", [3, 300])
def test_masks_that_fill_their_boxes_have_the_numbers_of_boxes(
    tmp_path: Path, lvis: bool, limit: int
) -> None:
    found = _rectangles(tmp_path / "a.json", lvis)
    classes = ClassList(names=("c1", "c2", "c3"), category_ids=(1, 2, 3))
    build = lvis_evaluator if lvis else CocoEvaluator
    most = limit if lvis else [1, limit]
    evaluator = build(tmp_path / "a.json", classes, max_detections=most, masks=True)
    for image, one in found.items():
        info = ImageInfo(image_id=image, original_size=(100, 100), scale=(1.0, 1.0))
        evaluator.update([one], [info])
    numbers = evaluator.compute()
    boxes = {k: v for k, v in numbers.items() if not k.startswith("mask_")}
    masks = {k.removeprefix("mask_"): v for k, v in numbers.items() if k.startswith("mask_")}
    assert boxes["AP"] > 0.1
    assert masks == pytest.approx(boxes, abs=1e-12)


def test_annotations_without_outlines_are_named(tmp_path: Path) -> None:
    _rectangles(tmp_path / "a.json", lvis=False)
    content = json.loads((tmp_path / "a.json").read_text())
    del content["annotations"][2]["segmentation"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    classes = ClassList(names=("c1", "c2", "c3"), category_ids=(1, 2, 3))
    CocoEvaluator(tmp_path / "a.json", classes)
    with pytest.raises(UserError, match=r"annotation 3 .* evaluation\.masks=false"):
        CocoEvaluator(tmp_path / "a.json", classes, masks=True)


def test_detections_may_be_none(tmp_path: Path) -> None:
    found = _rectangles(tmp_path / "a.json", lvis=False)
    classes = ClassList(names=("c1", "c2", "c3"), category_ids=(1, 2, 3))
    evaluator = CocoEvaluator(tmp_path / "a.json", classes, masks=True)
    for image, one in found.items():
        info = ImageInfo(image_id=image, original_size=(100, 100), scale=(1.0, 1.0))
        evaluator.update([replace(one).take(slice(0))], [info])
    numbers = evaluator.compute()
    assert numbers["mask_AP"] == numbers["AP"] == 0.0


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 999))
def test_run_lengths_are_those_of_the_bitmaps(size: tuple[int, int], seed: int) -> None:
    """Of boxes in the image, beyond its edges, over all of it, and of none."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.tensor([size[1], size[0]] * 2)
    one, other = (torch.rand(2, 8, 2, generator=generator) * 1.6 - 0.3).unbind()
    boxes = torch.cat([one.minimum(other), one.maximum(other)], dim=1) * sides
    boxes[0], boxes[1] = sides * torch.tensor([-0.5, -0.5, 1.5, 1.5]), torch.tensor(torch.nan)
    cells = torch.rand(8, 1, 4, 4, generator=generator)
    probabilities = torch.nn.functional.interpolate(cells, (14, 14), mode="bicubic")[:, 0]
    probabilities[0] = 1.0
    found = Detections(
        boxes_xyxy_px=boxes,
        scores=torch.ones(8),
        labels=torch.zeros(8, dtype=torch.int64),
        cells=Masks(probabilities=probabilities, scores=torch.ones(8)),
    )
    columns = np.asfortranarray(found.bitmaps(size).permute(1, 2, 0).numpy().view(np.uint8))
    assert encode(found, size).counts == [one["counts"] for one in rle.encode(columns)]
