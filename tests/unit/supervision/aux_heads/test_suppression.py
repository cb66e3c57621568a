"""Suppression within sets against a call per set, and what it does to proposals."""

import pytest
import torch
from conftest import random_boxes
from torch import Tensor
from torchvision.ops import batched_nms, nms

from codetr.supervision.aux_heads import suppression
from codetr.supervision.aux_heads.rpn import ProposalSelection
from codetr.supervision.aux_heads.suppression import image_by_image, set_by_set, surviving

SIZES = (40, 0, 25, 1)
IMAGES = 3


def crowd(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes and scores of all sets of all images, and each one's set."""
    torch.manual_seed(seed)
    boxes = torch.stack([random_boxes(sum(SIZES), (60, 60)) for _ in range(IMAGES)])
    scores = torch.rand(IMAGES, sum(SIZES))
    return boxes, scores, torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("way", [set_by_set, image_by_image, surviving])
def test_both_ways_keep_what_torchvision_keeps(way, seed: int) -> None:
    boxes, scores, number = crowd(seed)
    kept = way(boxes, scores, SIZES, 0.4)
    for own, score, found in zip(boxes, scores, kept, strict=True):
        expected = batched_nms(own, score, number, 0.4)
        assert found.nonzero()[:, 0].tolist() == expected.sort().values.tolist()
        assert 4 < found.sum() < len(own)


def test_sets_are_apart_also_far_from_the_origin() -> None:
    boxes = torch.tensor([[3000.0, 3000, 3100, 3100]] * 3) - torch.tensor([[0.0], [0], [6000]])
    scores = torch.tensor([[0.9, 0.8, 0.7], [0.8, 0.9, 0.7]])
    assert image_by_image(boxes[None], scores[:1], (1, 1, 1), 0.5).all()
    found = image_by_image(boxes.expand(2, 3, 4), scores, (2, 1), 0.5)
    assert found.tolist() == [[1, 0, 1], [0, 1, 1]]


def test_sets_that_are_moved_apart_keep_the_overlaps_they_had() -> None:
    """An overlap just above the threshold; where float32 would move it, it would be below."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0001]])
    far = torch.tensor([[0.0, 0.0, 1e5, 1.0]])
    together = torch.cat([far, boxes])[None]
    scores = torch.tensor([[0.5, 0.9, 0.8]])
    for way in (set_by_set, image_by_image):
        assert way(together, scores, (1, 2), 0.5).tolist() == [[1, 1, 0]]


def test_no_call_sees_the_boxes_of_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a call on a GPU grows with the square of its boxes."""
    seen = []
    monkeypatch.setattr(suppression, "nms", lambda b, s, iou: seen.append(len(b)) or nms(b, s, iou))
    boxes, scores, _ = crowd(0)
    image_by_image(boxes, scores, SIZES, 0.4)
    assert seen == [sum(SIZES)] * IMAGES


@pytest.mark.parametrize("limit", [5, 1000])
def test_each_image_gets_its_own_best_proposals(limit: int) -> None:
    """Against torchvision, image by image; boxes without area are dropped."""
    levels = (30, 12)
    boxes = torch.stack([random_boxes(42, (60, 60)) for _ in range(3)])
    boxes[0, :20, 2] = boxes[0, :20, 0]
    scores = torch.rand(3, 42)
    found = ProposalSelection(per_level=20, limit=limit, iou=0.5)(scores, boxes, levels)
    for own, score, one in zip(boxes, scores, found, strict=True):
        best = [level.topk(min(20, len(level))).indices for level in score.split(levels)]
        index = torch.cat([best[0], best[1] + 30])
        index = index[(own[index, 2:] > own[index, :2]).all(1)]
        kept = batched_nms(own[index], score[index], (index >= 30).long(), 0.5)[:limit]
        assert torch.equal(one.boxes, own[index][kept])
        assert torch.equal(one.scores, score[index][kept])
    assert len(found[0].boxes) > 0
