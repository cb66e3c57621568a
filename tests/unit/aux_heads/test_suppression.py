"""Suppression within sets against a call per set, and what it does to proposals."""

import pytest
import torch
from conftest import random_boxes
from torch import Tensor
from torchvision.ops import batched_nms

from codetr.aux_heads.rpn import ProposalSelection
from codetr.aux_heads.suppression import all_at_once, set_by_set, surviving

SIZES = (40, 0, 25, 1)


def crowd(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes and scores of all sets, and each one's set."""
    torch.manual_seed(seed)
    boxes = torch.cat([random_boxes(n, (60, 60)) for n in SIZES])
    return boxes, torch.rand(len(boxes)), torch.arange(4).repeat_interleave(torch.tensor(SIZES))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("way", [set_by_set, all_at_once, surviving])
def test_both_ways_keep_what_torchvision_keeps(way, seed: int) -> None:
    boxes, scores, number = crowd(seed)
    expected = batched_nms(boxes, scores, number, 0.4)
    kept = way(boxes, scores, SIZES, 0.4)
    assert kept.nonzero()[:, 0].tolist() == expected.sort().values.tolist()
    assert 4 < kept.sum() < len(boxes)


def test_sets_are_apart_also_far_from_the_origin() -> None:
    boxes = torch.tensor([[3000.0, 3000, 3100, 3100]] * 3) - torch.tensor([[0.0], [0], [6000]])
    assert all_at_once(boxes, torch.tensor([0.9, 0.8, 0.7]), (1, 1, 1), 0.5).all()
    assert all_at_once(boxes, torch.tensor([0.8, 0.9, 0.7]), (2, 1), 0.5).tolist() == [0, 1, 1]


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
