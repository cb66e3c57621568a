"""The confusion matrix against one that is filled box by box."""

from pathlib import Path

import evaluation_scenes as scenes
import numpy as np
import pytest

from codetr.evaluation import CocoEvaluator
from codetr.evaluation.confusion import Confusion, confusion
from codetr.evaluation.matching import make_scenes


def iou(a: list[float], b: list[float], over: str = "union") -> float:
    """Of boxes x, y, w, h; ``over`` a: the share of it that lies in b."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / (a[2] * a[3] + (b[2] * b[3] - both if over == "union" else 0))


def brute_force(evaluator: CocoEvaluator, threshold: float, num_classes: int) -> np.ndarray:
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=int)
    for image, detections in evaluator.detections.items():
        true = evaluator.truth[image]
        kinds = zip(
            true.labels.tolist(), true.boxes_xywh_px.tolist(), true.crowd.tolist(), strict=True
        )
        objects = list(kinds)
        free = [(label, box) for label, box, crowd in objects if not crowd]
        crowds = [(label, box) for label, box, crowd in objects if crowd]
        ranked = sorted(detections.tolist(), key=lambda row: -row[1])
        for label, score, *box in ranked:
            if score <= threshold:
                continue
            near = [(iou(box, b), k == label, j) for j, (k, b) in enumerate(free)]
            near = [n for n in near if n[0] >= 0.5]
            if near:
                true_label, _ = free.pop(max(near)[2])
                counts[true_label, int(label)] += 1
            elif not any(k == label and iou(box, b, "a") >= 0.5 for k, b in crowds):
                counts[num_classes, int(label)] += 1
        for label, _ in free:
            counts[label, num_classes] += 1
    return counts


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(2))
def test_equals_brute_force(tmp_path: Path, seed: int, threshold: float) -> None:
    path = tmp_path / "instances.json"
    scenes.write_annotations(path, num_images=40, seed=seed)
    evaluator = CocoEvaluator(path, scenes.CLASSES)
    for image, found in scenes.detections(path, seed=seed + 5).items():
        evaluator.update([found], [scenes.info(image)])
    evaluator.compute()
    made = make_scenes(evaluator.detections, evaluator.truth, 10_000)
    seen = confusion(made, len(scenes.CLASSES), threshold)
    expected = brute_force(evaluator, threshold, len(scenes.CLASSES))
    np.testing.assert_array_equal(seen.counts, expected)
    assert seen.counts[:3, :3].trace() > 0
    if threshold < 0.5:
        assert seen.most_frequent(10), "classes are mixed up in this case"
        assert seen.counts[:3, 4].all()
        assert seen.counts[4, :3].all()


def test_most_frequent_and_most_confused() -> None:
    counts = np.array([[9, 2, 0, 1], [5, 9, 0, 0], [0, 1, 9, 0], [0, 7, 0, 0]])
    seen = Confusion(counts=counts, threshold=0.5)
    assert seen.most_frequent(2) == [(1, 0, 5), (0, 1, 2)]
    assert seen.most_frequent(9) == [(1, 0, 5), (0, 1, 2), (2, 1, 1)]
    assert seen.most_confused(2).tolist() == [0, 1]
