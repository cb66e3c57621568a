"""LVIS numbers against hand-made cases and against a naive evaluation written from the paper."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from pycocotools import mask as rle

from codetr.classes import ClassList
from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.evaluation import CocoEvaluator, lvis_evaluator
from codetr.masks import Masks
from codetr.structures import Detections, ImageInfo
from codetr.training.evaluators import build_evaluator

CONF = conf_folder()
CLASSES = ClassList(names=("ant", "bat", "cup", "dog", "elk"), category_ids=(4, 2, 9, 1, 30))
FREQUENCIES = {4: "r", 2: "c", 9: "f", 1: "f", 30: "r"}
ANT, BAT, CUP, DOG, ELK = range(5)
BOX = [10.0, 10, 50, 50]  # xywh, of medium size
FAR = [200.0, 200, 50, 50]
AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR", "ARs", "ARm", "ARl"]


def _write(path: Path, images: list[dict[str, Any]]) -> Path:
    """``images``: dicts of ``true`` [(label, xywh)], ``negative`` and ``open`` labels."""
    ids = CLASSES.category_ids
    boxes = [(i + 1, *b) for i, image in enumerate(images) for b in image.get("true", [])]
    content = {
        "images": [
            {
                "id": i + 1,
                "neg_category_ids": [ids[k] for k in image.get("negative", [])],
                "not_exhaustive_category_ids": [ids[k] for k in image.get("open", [])],
            }
            for i, image in enumerate(images)
        ],
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": ids[label],
                "bbox": box,
                "area": box[2] * box[3],
            }
            for n, (image, label, box) in enumerate(boxes)
        ],
        "categories": [
            {"id": c, "name": n, "frequency": FREQUENCIES[c]}
            for n, c in zip(CLASSES.names, ids, strict=True)
        ],
    }
    path.write_text(json.dumps(content))
    return path


def _detections(rows: list[tuple[int, float, list[float]]]) -> Detections:
    """Rows of label, score and xywh."""
    boxes = torch.tensor([r[2] for r in rows], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        boxes_xyxy_px=boxes,
        scores=torch.tensor([r[1] for r in rows], dtype=torch.float64),
        labels=torch.tensor([r[0] for r in rows], dtype=torch.int64),
    )


def _evaluator(path: Path, found: list[list[Any]], **options: Any) -> CocoEvaluator:
    evaluator = lvis_evaluator(path, CLASSES, **options)
    for i, rows in enumerate(found):
        info = ImageInfo(image_id=i + 1, original_size=(600, 600), scale=(1.0, 1.0))
        evaluator.update([_detections(rows)], [info])
    return evaluator


def test_perfect_detections_and_the_groups_of_classes(tmp_path: Path) -> None:
    images = [{"true": [(ANT, BOX), (CUP, FAR)]}, {"true": [(BAT, BOX)]}]
    found = [[(ANT, 0.9, BOX), (CUP, 0.8, FAR)], [(BAT, 0.9, FAR)]]
    evaluator = _evaluator(_write(tmp_path / "a.json", images), found)
    numbers = evaluator.compute()
    assert list(numbers) == NAMES
    assert (numbers["APr"], numbers["APc"], numbers["APf"]) == pytest.approx((1, 0, 1))
    assert numbers["AP"] == pytest.approx(2 / 3)
    assert numbers["AR"] == pytest.approx(2 / 3)
    assert (numbers["APs"], numbers["APm"]) == pytest.approx((-1, 2 / 3))
    for key in ("AP", "AP50", "AR"):
        assert {name: own[key] for name, own in evaluator.per_class.items()} == pytest.approx(
            {"ant": 1, "bat": 0, "cup": 1, "dog": -1, "elk": -1}
        )
    lines = evaluator.table().splitlines()
    assert len(lines) == len(NAMES)
    assert "classes=rare | maxDets=300 ] = 1.000" in lines[6]
    evaluator.write_metrics(tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text())["APr"] == pytest.approx(1)


FALSE_ALARM = {  # in a second image, of a class with one true box in the first: what AP remains
    "not annotated there": ({}, 1.0),
    "checked to be absent": ({"negative": [ANT]}, 0.5),
    "present elsewhere": ({"true": [(ANT, FAR)]}, 0.5 * 51 / 101),
    "not all annotated": ({"true": [(ANT, FAR)], "open": [ANT]}, 51 / 101),
    "another class is open": ({"negative": [ANT], "open": [BAT]}, 0.5),
}


@pytest.mark.parametrize("case", FALSE_ALARM)
def test_false_positives_count_where_the_class_was_annotated(tmp_path: Path, case: str) -> None:
    second, expected = FALSE_ALARM[case]
    path = _write(tmp_path / "a.json", [{"true": [(ANT, BOX)]}, second])
    # The false alarm is the best detection: precision is 1/2 at the recall of the true one.
    evaluator = _evaluator(path, [[(ANT, 0.5, BOX)], [(ANT, 0.9, BOX)]])
    assert evaluator.compute()["APr"] == pytest.approx(expected)


def test_the_best_detections_of_an_image_count_whatever_their_class(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.json", [{"true": [(ANT, BOX), (BAT, FAR)]}])
    rows = [*[(DOG, 0.9, BOX)] * 299, (ANT, 0.8, BOX), (BAT, 0.7, FAR)]
    numbers = _evaluator(path, [rows]).compute()
    assert (numbers["APr"], numbers["APc"]) == pytest.approx((1, 0))
    numbers = _evaluator(path, [rows], max_detections=301).compute()
    assert (numbers["APr"], numbers["APc"]) == pytest.approx((1, 1))
    many = [*[(ANT, 0.9, FAR)] * 299, (ANT, 0.8, BOX)]
    assert _evaluator(path, [many]).compute()["APr"] == pytest.approx(1 / 300)


def _iou(a: list[float], b: list[float]) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def _area(box: list[float]) -> float:
    return box[2] * box[3]


def _naive_class(
    images: list[dict[str, Any]],
    found: list[list[Any]],
    label: int,
    iou: float,
    low: float,
    high: float,
    overlap: Callable[[Any, Any], float] = _iou,
    area: Callable[[Any], float] = _area,
) -> tuple[float, float]:
    """AP (101 points) and recall of one class, IoU and range of areas; -1 without objects, which
    may be boxes or whatever else has an ``overlap`` and an ``area``.
    """
    events, total = [], 0
    for image, rows in zip(images, found, strict=True):
        true = [box for k, box in image.get("true", []) if k == label]
        if not true and label not in image.get("negative", []):
            continue
        ignored = [not low <= area(one) <= high for one in true]
        total += ignored.count(False)
        free = set(range(len(true)))
        best = sorted(rows, key=lambda r: -r[1])[:300]
        for _, score, box in (r for r in best if r[0] == label):
            for ignore in (False, True):
                near = [(-overlap(box, true[j]), -j) for j in free if ignored[j] == ignore]
                near = [n for n in near if -n[0] >= iou]
                if near:
                    free.remove(-min(near)[1])
                    if not ignore:
                        events.append((-score, True))
                    break
            else:
                if label not in image.get("open", []) and low <= area(box) <= high:
                    events.append((-score, False))
    if not total:
        return -1, -1
    events.sort(key=lambda e: e[0])
    hits = np.cumsum([hit for _, hit in events])
    precision = hits / np.arange(1, len(events) + 1)
    recall = hits / total
    points = [max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)]
    return float(np.mean(points)), float(recall[-1]) if len(events) else 0.0


def _scene(rng: np.random.Generator) -> tuple[dict[str, Any], list[Any]]:
    """An image with its annotation, and detections with distinct scores."""

    def box() -> list[float]:
        return [
            *rng.uniform(0, 300, 2).tolist(),
            *(rng.choice([20, 60, 150]) * rng.uniform(0.7, 1.4, 2)).tolist(),
        ]

    true = [(int(rng.integers(4)), box()) for _ in range(rng.integers(0, 7))]
    present = {label for label, _ in true}
    absent = [k for k in range(4) if k not in present and rng.random() < 0.5]
    image = {
        "true": true,
        "negative": absent,
        "open": [k for k in present if rng.random() < 0.3],
    }
    rows = []
    for label, (x, y, w, h) in true:
        for _ in range(rng.integers(0, 3)):
            jitter = rng.normal(0, 0.08, 4) * [w, h, w, h]
            rows.append((label, float(rng.random()), (np.array([x, y, w, h]) + jitter).tolist()))
    rows += [(int(rng.integers(4)), float(rng.random()), box()) for _ in range(rng.integers(0, 6))]
    return image, rows


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_numbers_equal_a_naive_evaluation(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, found = zip(*(_scene(rng) for _ in range(40)), strict=True)
    evaluator = _evaluator(_write(tmp_path / "a.json", list(images)), list(found))
    numbers = evaluator.compute()

    ious = np.linspace(0.5, 0.95, 10)
    for suffix, (low, high) in AREAS.items():
        table = np.array(
            [[_naive_class(images, found, k, t, low, high) for t in ious] for k in range(5)]
        )
        assert (table[ELK] == -1).all()  # no box: not counted
        measured = table[table[:, 0, 0] > -1]
        assert numbers[f"AP{suffix}"] == pytest.approx(measured[..., 0].mean(), abs=1e-9)
        assert numbers[f"AR{suffix}"] == pytest.approx(measured[..., 1].mean(), abs=1e-9)
        if not suffix:
            assert numbers["AP50"] == pytest.approx(measured[:, 0, 0].mean(), abs=1e-9)
            assert numbers["AP75"] == pytest.approx(measured[:, 5, 0].mean(), abs=1e-9)
            own = list(evaluator.per_class.values())
            assert [o["AP"] for o in own] == pytest.approx(table[..., 0].mean(axis=1), abs=1e-9)
            assert [o["AP50"] for o in own] == pytest.approx(table[:, 0, 0], abs=1e-9)
            assert [o["AR"] for o in own] == pytest.approx(table[..., 1].mean(axis=1), abs=1e-9)
            assert numbers["APr"] == pytest.approx(table[ANT, :, 0].mean(), abs=1e-9)
            assert numbers["APc"] == pytest.approx(table[BAT, :, 0].mean(), abs=1e-9)
            assert numbers["APf"] == pytest.approx(table[[CUP, DOG], :, 0].mean(), abs=1e-9)
    assert 0.05 < numbers["AP"] < 0.95


SIDE, CELLS = 220, 20


def _shape(rng: np.random.Generator) -> NDArray[np.bool_]:
    """An ellipse, sometimes with a hole, anywhere in an image of ``SIDE`` pixels a side."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    cx, cy = rng.uniform(30, SIDE - 30, 2)
    w, h = rng.choice([12, 30, 90]) * rng.uniform(0.7, 1.3, 2)
    distance = ((x - cx) / w) ** 2 + ((y - cy) / h) ** 2
    bitmap: NDArray[np.bool_] = (distance <= 1) & (distance >= rng.choice([0.0, 0.3]))
    return bitmap


def _found_near(bitmap: NDArray[np.bool_], rng: np.random.Generator) -> tuple[list[float], Any]:
    """A box (xyxy) that is a little off, and noisy probabilities in it."""
    rows, columns = (np.flatnonzero(bitmap.any(axis=axis)) for axis in (1, 0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)
    box += rng.normal(0, 0.04, 4) * np.tile(box[2:] - box[:2], 2)
    x, y = (
        np.clip(np.linspace(low, high, 2 * CELLS + 1)[1::2].astype(int), 0, SIDE - 1)
        for low, high in ((box[0], box[2]), (box[1], box[3]))
    )
    return box.tolist(), 0.6 * bitmap[np.ix_(y, x)] + 0.4 * rng.random((CELLS, CELLS))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("limit", [300, 4])
def test_numbers_of_masks_equal_a_naive_evaluation(tmp_path: Path, seed: int, limit: int) -> None:
    """By the pixels of masks, ranked by their own scores, with sizes by annotated areas of objects
    and pixels of what was found.
    """
    rng = np.random.default_rng(seed)
    images, given = [], []
    for _ in range(25):
        true = [(int(rng.integers(4)), _shape(rng)) for _ in range(rng.integers(0, 5))]
        present = {label for label, _ in true}
        images.append(
            {
                "true": true,
                "negative": [k for k in range(4) if k not in present and rng.random() < 0.5],
                "open": [k for k in present if rng.random() < 0.3],
            }
        )
        near = [pair for pair in true for _ in range(rng.integers(0, 3))]
        near += [(int(rng.integers(4)), _shape(rng)) for _ in range(rng.integers(0, 4))]
        given.append([(label, *_found_near(shape, rng)) for label, shape in near])
    boxes = [
        {**image, "true": [(label, [0.0, 0.0, 9.0, 9.0]) for label, _ in image["true"]]}
        for image in images
    ]
    path = _write(tmp_path / "a.json", boxes)
    content = json.loads(path.read_text())
    shapes = [shape for image in images for _, shape in image["true"]]
    for entry, shape in zip(content["annotations"], shapes, strict=True):
        encoded = rle.encode(np.asfortranarray(shape.astype(np.uint8)))
        entry["segmentation"] = {"size": [SIDE, SIDE], "counts": encoded["counts"].decode()}
        entry["area"] = int(shape.sum())
    content["images"] = [{**image, "height": SIDE, "width": SIDE} for image in content["images"]]
    path.write_text(json.dumps(content))

    evaluator = lvis_evaluator(path, CLASSES, max_detections=limit, masks=True)
    pasted = []
    for i, rows in enumerate(given):
        scores = torch.from_numpy(rng.random((2, len(rows))))
        one = Detections(
            boxes_xyxy_px=torch.tensor([row[1] for row in rows]).reshape(-1, 4),
            scores=scores[0],
            labels=torch.tensor([row[0] for row in rows], dtype=torch.int64),
            cells=Masks(
                probabilities=torch.from_numpy(
                    np.array([row[2] for row in rows]).reshape(-1, CELLS, CELLS)
                ),
                scores=scores[1],
            ),
        )
        info = ImageInfo(image_id=i + 1, original_size=(SIDE, SIDE), scale=(1.0, 1.0))
        evaluator.update([one], [info])
        bitmaps = one.bitmaps((SIDE, SIDE)).numpy()
        labels = one.labels.tolist()
        best = sorted(zip(labels, scores[1].tolist(), bitmaps, strict=True), key=lambda r: -r[1])
        pasted.append(best[:limit])
    numbers = evaluator.compute()

    def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
        return float((a & b).sum() / max((a | b).sum(), 1))

    for suffix, (low, high) in AREAS.items():
        table = np.array(
            [
                [
                    _naive_class(images, pasted, k, t, low, high, overlap, np.sum)
                    for t in np.linspace(0.5, 0.95, 10)
                ]
                for k in range(4)
            ]
        )
        measured = table[table[:, 0, 0] > -1]
        assert numbers[f"mask_AP{suffix}"] == pytest.approx(measured[..., 0].mean(), abs=1e-9)
        assert numbers[f"mask_AR{suffix}"] == pytest.approx(measured[..., 1].mean(), abs=1e-9)
        if not suffix:
            assert numbers["mask_APr"] == pytest.approx(table[ANT, :, 0].mean(), abs=1e-9)
            assert numbers["mask_APf"] == pytest.approx(table[[CUP, DOG], :, 0].mean(), abs=1e-9)
    assert 0.05 < numbers["mask_AP"] < 0.95


def test_images_that_were_not_evaluated_do_not_count(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.json", [{"true": [(ANT, BOX)]}, {"true": [(ANT, BOX), (BAT, BOX)]}])
    numbers = _evaluator(path, [[(ANT, 0.9, BOX)]]).compute()
    assert numbers["AP"] == pytest.approx(1)
    assert numbers["APc"] == -1
    assert _evaluator(path, [[], []]).compute()["AP"] == 0


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.json", [{"true": [(ANT, BOX)]}])
    content = json.loads(path.read_text())
    content["categories"][0]["frequency"] = "x"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="frequency 'x'"):
        lvis_evaluator(path, CLASSES)
    del content["images"][0]["neg_category_ids"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"not an LVIS annotation file .*evaluation=coco"):
        lvis_evaluator(path, CLASSES)
    with pytest.raises(UserError, match=r"evaluation\.max_detections=0"):
        lvis_evaluator(_write(path, []), CLASSES, max_detections=0)


def test_configuration_builds_it(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.json", [{"true": [(ANT, BOX)]}])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "train", overrides=["evaluation=lvis", "evaluation.postprocess.max_detections=7"]
        )
        evaluator = build_evaluator(cfg, path, CLASSES, "test")
    assert isinstance(evaluator, CocoEvaluator)
    assert list(evaluator.measure.lines) == NAMES
    assert evaluator.measure.lines["AP"][2] == 7
