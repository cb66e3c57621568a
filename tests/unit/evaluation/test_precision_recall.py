"""Curves against pycocotools and against counting."""

import contextlib
import io
import json
from pathlib import Path

import evaluation_scenes as scenes
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codetr.evaluation import CocoEvaluator
from codetr.evaluation.matching import make_scenes
from codetr.evaluation.precision_recall import (
    RECALLS,
    THRESHOLDS,
    above_thresholds,
    curves,
    precision_at_recalls,
    rank,
)
from codetr.structures import Detections


def reference_precision(path: Path, evaluator: CocoEvaluator, records: Path) -> np.ndarray:
    """(K, 101) of pycocotools at IoU 0.5, NaN where it has -1."""
    evaluator.write_predictions(records)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        truth.dataset.setdefault("info", {})
        reference = COCOeval(truth, truth.loadRes(str(records)), "bbox")
        reference.evaluate()
        reference.accumulate()
    places = [reference.params.catIds.index(c) for c in scenes.CLASSES.category_ids]
    precision = reference.eval["precision"][0, :, places, 0, -1]
    return np.where(precision < 0, np.nan, precision)


@pytest.mark.parametrize("seed", range(3))
def test_precision_equals_pycocotools(tmp_path: Path, seed: int) -> None:
    """With crowd regions, ties, and more than 100 detections of a class in an image."""
    path = tmp_path / "instances.json"
    scenes.write_annotations(path, num_images=60, seed=seed)
    evaluator = CocoEvaluator(path, scenes.CLASSES)
    for image, found in scenes.detections(path, seed=seed + 100).items():
        evaluator.update([found], [scenes.info(image)])
    ap50 = evaluator.compute()["AP50"]
    made = make_scenes(evaluator.detections, evaluator.truth, 100)
    assert max(np.bincount(scene.labels, minlength=1).max() for scene in made) == 100
    seen = curves(rank(made, len(scenes.CLASSES)))
    expected = reference_precision(path, evaluator, tmp_path / "predictions.json")
    np.testing.assert_allclose(seen.precision, expected, atol=1e-9)
    assert seen.measured.tolist() == [0, 1, 2]
    assert seen.precision[seen.measured].mean() == pytest.approx(ap50, abs=1e-9)


def test_numbers_above_a_threshold_are_counted() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 40, 200) / 40  # many lie on a threshold
    hits = rng.random(200) < scores
    precision, recall, f1 = above_thresholds(scores, hits, 150)
    for i, threshold in enumerate(THRESHOLDS):
        kept = [hit for hit, score in zip(hits, scores, strict=True) if score > threshold]
        right = sum(kept)
        assert precision[i] == (right / len(kept) if kept else 1)
        assert recall[i] == right / 150
        assert f1[i] == pytest.approx(2 * right / (len(kept) + 150))


def test_precision_is_the_best_at_this_recall_or_beyond() -> None:
    scores, hits = np.array([0.9, 0.8, 0.7]), np.array([False, True, True])
    expected = np.where(RECALLS <= 0.5, 2 / 3, 0.0)  # two of four objects
    np.testing.assert_allclose(precision_at_recalls(scores, hits, 4), expected)
    assert not precision_at_recalls(scores[:0], hits[:0], 4).any()


def test_best_threshold_separates_right_from_wrong(tmp_path: Path) -> None:
    """Right detections have scores above 0.6, wrong ones below 0.4."""
    path = tmp_path / "instances.json"
    scenes.write_annotations(path, num_images=20)
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    path.write_text(json.dumps(content))
    evaluator = CocoEvaluator(path, scenes.CLASSES)
    for image, true in evaluator.truth.items():
        low, size = true.boxes_xywh_px.split(2, dim=1)
        wrong = torch.tensor([[5000.0, 5000, 5009, 5009]])
        found = Detections(
            boxes_xyxy_px=torch.cat([torch.cat([low, low + size], dim=1), wrong]),
            scores=torch.tensor([0.6] * len(true.labels) + [0.4]),
            labels=torch.cat([true.labels, torch.tensor([1])]),
        )
        evaluator.update([found], [scenes.info(image)])
    evaluator.compute()
    made = make_scenes(evaluator.detections, evaluator.truth, 100)
    best = curves(rank(made, len(scenes.CLASSES))).best()
    assert best.threshold == pytest.approx(0.5, abs=0.01)
    assert (best.precision, best.recall, best.f1) == (1, 1, 1)
