"""Hard and soft suppression, alone and by class."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import codetr.nms
from codetr.errors import UserError
from codetr.nms import ClasswiseNms, Nms, SoftNms
from codetr.structures import Detections


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "golden" / "soft_nms" / "io.npz") as file:
        return dict(file)


@pytest.mark.golden
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_equals_the_official_code(golden, case):
    boxes, scores, labels = (
        torch.from_numpy(golden[f"{case}/{key}"]) for key in ("boxes", "scores", "labels")
    )
    keep, decayed = SoftNms(0.8, 1e-3)(boxes.double(), scores.double(), labels)
    expected = torch.from_numpy(golden[f"{case}/dets"])
    assert torch.equal(keep, torch.from_numpy(golden[f"{case}/keep"]).long())
    assert_close(decayed, expected[:, 4].double(), atol=1e-6, rtol=0)
    assert_close(boxes[keep].double(), expected[:, :4].double(), atol=1e-6, rtol=0)

    keep32, decayed32 = SoftNms(0.8, 1e-3)(boxes, scores, labels)
    assert decayed32.dtype == torch.float32
    assert torch.equal(keep32, keep)
    official = torch.from_numpy(golden[f"{case}/scores_float32"])
    assert_close(decayed32, official.float(), atol=1e-4, rtol=0)


def _boxes(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_decays_only_within_a_class_and_sorts_by_the_decayed_score():
    boxes = _boxes([0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.5], dtype=torch.float64)
    keep, decayed = SoftNms()(boxes, scores, torch.tensor([0, 0, 1, 0]))
    assert keep.tolist() == [0, 2, 3, 1]
    assert_close(decayed, torch.tensor([0.9, 0.7, 0.5, 0.08], dtype=torch.float64))


def test_a_box_that_was_decayed_loses_its_turn():
    # 1 overlaps 0 and 2 strongly, 0 and 2 overlap below the threshold: by its original score 1
    # would decay 2, but 0 has decayed it by then.
    boxes = _boxes([0, 0, 10, 100], [1, 0, 11, 100], [2, 0, 12, 100])
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    keep, decayed = SoftNms(0.7, 0.1)(boxes, scores, torch.zeros(3, dtype=torch.long))
    assert keep.tolist() == [0, 2]
    assert_close(decayed, torch.tensor([0.9, 0.7], dtype=torch.float64))


def test_the_best_box_stays_whatever_its_score():
    boxes = _boxes([0, 0, 1, 1], [5, 5, 6, 6])
    scores = torch.tensor([1e-5, 1e-4], dtype=torch.float64)
    keep, decayed = SoftNms()(boxes, scores, torch.tensor([0, 1]))
    assert keep.tolist() == [1]
    assert decayed.tolist() == [1e-4]


def test_no_box_and_a_floor_of_zero():
    keep, decayed = SoftNms()(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert len(keep) == len(decayed) == 0
    same = torch.tensor([[0.0, 0, 5, 5]]).repeat(3, 1)
    keep, decayed = SoftNms(min_score=0.0)(same, torch.tensor([0.5, 0.9, 0.7]), torch.zeros(3))
    assert keep[0] == 1
    assert_close(decayed, torch.tensor([0.9, 0.0, 0.0]))


def crowd(seed: int, objects: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three boxes about each object, of three classes."""
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(objects, 2, generator=random) * 100
    boxes = torch.cat([low, low + 20], dim=1).repeat(3, 1)
    boxes = boxes + torch.randn(boxes.shape, generator=random) / 2
    scores = torch.rand(len(boxes), generator=random)
    return boxes, scores, torch.arange(objects).repeat(3) % 3


def by_loops(boxes, scores, labels, threshold: float, floor: float) -> list[tuple[float, int]]:
    """Scores and indices that stay, from the algorithm as it is written."""
    left = dict(enumerate(scores.double().tolist()))
    found = []
    while left:
        best = max(left, key=lambda index: left[index])
        score = left.pop(best)
        if score < floor and found:
            break
        found.append((score, best))
        for other in left:
            a, b = boxes[best].double(), boxes[other].double()
            size = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
            shared = float(size.prod())
            areas = float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod())
            overlap = shared / (areas - shared)
            if labels[best] == labels[other] and overlap >= threshold:
                left[other] *= 1 - overlap
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


@pytest.mark.parametrize("numba", [True, False], ids=["compiled", "without numba"])
def test_images_of_a_batch_do_not_see_each_other(numba: bool, monkeypatch, caplog) -> None:
    if not numba:
        monkeypatch.setitem(sys.modules, "codetr.compiled", None)
    codetr.nms._compiled_decay.cache_clear()
    images = [crowd(0, 12), crowd(1, 0), crowd(2, 5)]
    found = SoftNms(0.6, 0.05).batch(images)
    codetr.nms._compiled_decay.cache_clear()
    assert caplog.text.count("numba does not load") == (0 if numba else 1)
    for image, (keep, decayed) in zip(images, found, strict=True):
        expected = by_loops(*image, 0.6, 0.05)
        assert keep.tolist() == [index for _, index in expected]
        assert_close(decayed, torch.tensor([score for score, _ in expected]), atol=1e-6, rtol=0)
        assert (decayed < image[1][keep]).any() or not len(keep)
    assert SoftNms().batch([]) == []


@pytest.mark.parametrize("options", [{"iou_threshold": 0.0}, {"min_score": -1.0}])
def test_bad_numbers_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        SoftNms(**options)


@pytest.mark.parametrize("iou_threshold", [0.0, 1.1])
def test_a_threshold_of_hard_suppression_is_an_overlap(iou_threshold: float) -> None:
    with pytest.raises(UserError, match="iou_threshold"):
        Nms(iou_threshold)


def test_soft_suppression_decays_within_a_class_and_limits_the_total() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 8], [50, 50, 60, 60]]).float()
    found = Detections(
        boxes_xyxy_px=boxes,
        scores=torch.tensor([0.9, 0.8, 0.7, 0.6]),
        labels=torch.tensor([1, 1, 2, 1]),
    )
    decay = partial(SoftNms, min_score=1e-3)
    kept = ClasswiseNms(iou=0.5, limit=3, decay=decay)(found)
    assert_close(kept.scores, torch.tensor([0.9, 0.7, 0.6]))
    assert kept.labels.tolist() == [1, 2, 1]
    assert_close(kept.boxes_xyxy_px, boxes[[0, 2, 3]])
    every = ClasswiseNms(iou=0.5, decay=decay)(found)
    assert_close(every.scores[-1], torch.tensor(0.8 * (1 - 0.8)))


def test_hard_suppression_is_the_default_and_narrow_types_are_widened() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 8], [50, 50, 60, 60]])
    found = Detections(
        boxes_xyxy_px=boxes.half(),
        scores=torch.tensor([0.6, 0.8, 0.7, 0.9]).half(),
        labels=torch.tensor([1, 1, 2, 1]),
    )
    kept = ClasswiseNms(iou=0.5)(found)
    assert kept.labels.tolist() == [1, 1, 2]
    assert torch.equal(kept.scores, found.scores[[3, 1, 2]])
    assert ClasswiseNms(iou=0.9, limit=2)(found).scores.tolist() == kept.scores[:2].tolist()
