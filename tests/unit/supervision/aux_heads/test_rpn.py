"""The first stage at a few anchors against the first stage at all of them."""

import pytest
import torch
from conftest import random_boxes
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import batched_nms

from codetr.loss_terms import total_loss
from codetr.structures import Images, Pyramid
from codetr.supervision.assigners.sampling import RandomSampler
from codetr.supervision.aux_heads.rcnn import RcnnHead
from codetr.supervision.aux_heads.roi_heads import SharedFcBoxHead
from codetr.supervision.aux_heads.rpn import ProposalSelection, Rpn

SHAPES = ((5, 7), (3, 1), (1, 4), (1, 1))


def first_stage() -> tuple[Rpn, Pyramid, Images]:
    """With random weights and maps, down to a single cell, of three images."""
    rpn = Rpn(channels=8).double()
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    maps = [torch.randn(3, 8, *s, dtype=torch.float64, requires_grad=True) for s in SHAPES]
    sizes = torch.tensor([[40, 56]]).repeat(3, 1)
    images = Images(
        pixels=torch.zeros(3, 3, 40, 56),
        padding=torch.zeros(3, 40, 56, dtype=torch.bool),
        sizes=sizes,
        padded_sizes=sizes,
    )
    return rpn, Pyramid(maps=tuple(maps), strides=(8, 16, 32, 64)), images


def gradients(rpn: Rpn, pyramid: Pyramid, value: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, [*rpn.parameters(), *pyramid.maps], retain_graph=True)


@pytest.mark.parametrize("kind", ["all", "few", "again and again", "none of one image"])
def test_some_anchors_are_as_all_anchors_say(kind: str) -> None:
    rpn, pyramid, images = first_stage()
    everywhere = rpn(pyramid, images)
    count = everywhere.logits.shape[1]
    index = [torch.randperm(count)[: count if kind == "all" else 20] for _ in range(3)]
    if kind == "again and again":
        index[0] = index[0][:2].repeat(5)
    elif kind == "none of one image":
        index[1] = index[1][:0]
    some = rpn.at(pyramid, index)
    dense = []
    for b, chosen in enumerate(index):
        assert_close(some.logits[b], everywhere.logits[b, chosen])
        assert_close(some.deltas[b], everywhere.deltas[b, chosen])
        logits, deltas = everywhere.logits[b, chosen], everywhere.deltas[b, chosen]
        dense.append(logits.square().sum() + deltas.cos().sum())
    sparse = torch.cat(some.logits).square().sum() + torch.cat(some.deltas).cos().sum()
    for ours, theirs in zip(
        gradients(rpn, pyramid, sparse), gradients(rpn, pyramid, sum(dense)), strict=True
    ):
        assert_close(ours, theirs)


def test_no_anchor_at_all() -> None:
    rpn, pyramid, _ = first_stage()
    none = rpn.at(pyramid, [torch.zeros(0, dtype=torch.long)] * 3)
    assert [len(logits) for logits in none.logits] == [0, 0, 0]
    total = torch.cat(none.logits).sum() + torch.cat(none.deltas).sum()
    assert not any(gradient.any() for gradient in gradients(rpn, pyramid, total))


def test_mixed_precision_trains_the_first_stage(small_batch) -> None:
    """Autocast keeps cast weights: none may be kept from a pass that has no graph."""
    pyramid, batch = small_batch((2, 1))
    head = RcnnHead(
        num_classes=5,
        channels=32,
        num_levels=3,
        rpn=Rpn(channels=32, sampler=RandomSampler(size=32, positive_share=0.5)),
        box_head=SharedFcBoxHead(num_classes=5, channels=32, fc_dim=16),
    )
    with torch.autocast("cpu", torch.bfloat16):
        losses = head(pyramid, batch).losses
    total_loss({k: v for k, v in losses.items() if k.startswith("rpn_")}).backward()
    for name, parameter in head.rpn.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


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
