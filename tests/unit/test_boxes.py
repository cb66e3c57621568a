"""Box arithmetic against torchvision."""

import math

import pytest
import torch
from torch.testing import assert_close
from torchvision import ops

from codetr.boxes import (
    area_xyxy,
    centerness,
    centres_xyxy,
    clip_xyxy,
    cxcywh_to_xyxy,
    decode_distances,
    encode_distances,
    logit,
    paired_giou,
    paired_iou,
    pairwise_iou,
    xyxy_to_cxcywh,
)


def boxes_xyxy(count: int) -> torch.Tensor:
    """(count, 4) boxes of 1 to 60 px within 100 px."""
    low = torch.rand(count, 2, dtype=torch.float64) * 40
    return torch.cat([low, low + 1 + torch.rand(count, 2, dtype=torch.float64) * 59], dim=1)


def test_conversions_and_areas_equal_torchvision() -> None:
    boxes = boxes_xyxy(20)
    centres = ops.box_convert(boxes, "xyxy", "cxcywh")
    assert_close(xyxy_to_cxcywh(boxes), centres)
    assert_close(cxcywh_to_xyxy(centres), boxes)
    assert_close(area_xyxy(boxes), ops.box_area(boxes))


def test_overlaps_equal_torchvision() -> None:
    a, b = boxes_xyxy(12), boxes_xyxy(15)
    a[0], a[1] = b[0], torch.tensor([200.0, 200, 210, 210])  # one equal, one far away
    assert_close(pairwise_iou(a, b), ops.box_iou(a, b))
    pairs = paired_giou(a[:, None], b)
    assert_close(pairs, ops.generalized_box_iou(a, b))
    assert pairwise_iou(a, b)[0, 0] == 1
    assert pairs[1].max() < -0.5


def test_paired_is_the_diagonal_and_leading_dimensions_broadcast() -> None:
    a, b = boxes_xyxy(12), boxes_xyxy(12)
    assert_close(paired_iou(a, b), ops.box_iou(a, b).diagonal())
    assert_close(paired_giou(a, b), ops.generalized_box_iou(a, b).diagonal())
    stacked = paired_giou(a.view(3, 4, 1, 4), b)
    assert_close(stacked.flatten(0, 1), ops.generalized_box_iou(a, b))


def test_empty_sides_and_points_stay_finite() -> None:
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    overlap = paired_giou(point, point)
    assert overlap.isfinite().all()
    overlap.sum().backward()
    assert point.grad.isfinite().all()
    assert pairwise_iou(point, point[:0]).shape == (1, 0)


def test_giou_gradient_equals_torchvision() -> None:
    a, b = boxes_xyxy(10).requires_grad_(), boxes_xyxy(10)
    ours = torch.autograd.grad((1 - paired_giou(a, b)).sum(), a)[0]
    theirs = torch.autograd.grad(ops.generalized_box_iou_loss(a, b, "sum"), a)[0]
    assert_close(ours, theirs, atol=1e-6, rtol=1e-5)  # theirs has eps 1e-7 in the denominators


def test_clip_equals_torchvision() -> None:
    boxes = boxes_xyxy(20) * 3 - 50
    height, width = 60, 90
    ours = clip_xyxy(boxes, torch.tensor([width, height]))
    assert_close(ours, ops.clip_boxes_to_image(boxes, (height, width)))


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_logit_inverts_the_sigmoid_up_to_its_clamp(eps: float) -> None:
    p = torch.tensor([0.0, eps / 2, 0.3, 0.5, 1 - eps / 2, 1.0, 1.7], dtype=torch.float64)
    bound = torch.logit(torch.tensor(eps, dtype=torch.float64)).item()
    ours = logit(p, eps)
    assert_close(ours[2:4], torch.logit(p[2:4]))
    assert ours[:2].tolist() == pytest.approx([torch.log(torch.tensor(eps)).item()] * 2, rel=1e-2)
    assert ours.abs().max().item() == pytest.approx(-bound, rel=1e-3)


def test_distances_are_inverted_and_centerness_follows_its_formula() -> None:
    points = torch.rand(20, 2, dtype=torch.float64) * 10
    sides = torch.rand(20, 4, dtype=torch.float64) * 5 + 0.1
    boxes = decode_distances(points, sides)
    assert_close(encode_distances(points, boxes), sides)
    expected = [
        math.sqrt(min(a, c) / max(a, c) * min(b, d) / max(b, d)) for a, b, c, d in sides.tolist()
    ]
    assert_close(centerness(sides), torch.tensor(expected, dtype=torch.float64))
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert_close(centres_xyxy(boxes), middle)
    assert_close(centerness(encode_distances(middle, boxes)), torch.ones(20, dtype=torch.float64))
