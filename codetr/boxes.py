"""Box formats, areas, overlaps and distances of points to sides. ``cxcywh`` = centre and size,
``xyxy`` = corners.

Overlaps take ``eps`` = 1e-6 as a lower bound of the denominator, as the official code does
(mmdet ``bbox_overlaps``), so that numbers agree to the last digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 if its dtype is narrower, else unchanged: geometry and losses need this
    precision under mixed precision too.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to corners, same unit."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners to centre and size, same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def area_xyxy(boxes: Tensor) -> Tensor:
    """(...,) areas of (..., 4) corner boxes."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def centres_xyxy(boxes: Tensor) -> Tensor:
    """(..., 2) x and y of the centres of corner boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def clip_xyxy(boxes: Tensor, size_wh: Tensor) -> Tensor:
    """Corner boxes (..., 4) clipped to [0, width] x [0, height]; ``size_wh`` (2,), same unit."""
    return torch.minimum(boxes.clamp(min=0), size_wh.repeat(2).to(boxes.dtype))


def _overlap(a: Tensor, b: Tensor, area_a: Tensor, area_b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and clamped union of broadcastable corner boxes."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    size = (high - low).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    return intersection, (area_a + area_b - intersection).clamp(min=EPS)


def pairwise_iou(a: Tensor, b: Tensor, eps: float = EPS) -> Tensor:
    """IoU (..., Q, N) of every ``a`` (..., Q, 4) with every ``b`` (..., N, 4), both xyxy. With
    ``eps=0`` the IoU of two boxes without area is NaN.

    Computed one coordinate at a time: a last dimension of size 2 is slow on the CPU and doubles
    the temporaries. Fastest if ``b`` has more boxes than ``a``.
    """
    left, top, right, bottom = a[..., :, None, :].unbind(-1)
    b_left, b_top, b_right, b_bottom = b[..., None, :, :].unbind(-1)
    width = (torch.minimum(right, b_right) - torch.maximum(left, b_left)).clamp(min=0)
    height = (torch.minimum(bottom, b_bottom) - torch.maximum(top, b_top)).clamp(min=0)
    intersection = width * height
    area = area_xyxy(a)[..., :, None] + area_xyxy(b)[..., None, :]
    return intersection / (area - intersection).clamp(min=eps)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (P,) of ``a[p]`` with ``b[p]``, both (P, 4) xyxy."""
    intersection, union = _overlap(a, b, area_xyxy(a), area_xyxy(b))
    return intersection / union


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (...) of ``a`` and ``b``, broadcastable (..., 4) xyxy."""
    intersection, union = _overlap(a, b, area_xyxy(a), area_xyxy(b))
    low = torch.minimum(a[..., :2], b[..., :2])
    high = torch.maximum(a[..., 2:], b[..., 2:])
    size = (high - low).clamp(min=0)
    hull = (size[..., 0] * size[..., 1]).clamp(min=EPS)
    return intersection / union - (hull - union) / hull


def encode_distances(points: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) distances left, top, right, bottom of ``points`` (..., 2) to the sides of their
    boxes, same unit; negative where the point is outside. Shapes broadcast.
    """
    return torch.cat([points - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - points], dim=-1)


def decode_distances(points: Tensor, distances: Tensor) -> Tensor:
    """(..., 4) corner boxes, the inverse of ``encode_distances``."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def centerness(distances: Tensor) -> Tensor:
    """(...,) sqrt of the ratios of the near to the far side per axis (FCOS, eq. 3): 1 in the
    middle of a box, 0 on a side. ``distances`` (..., 4) of points inside.
    """
    low, high = distances[..., :2], distances[..., 2:]
    return (torch.minimum(low, high) / torch.maximum(low, high)).prod(dim=-1).sqrt()


def logit(p: Tensor, eps: float) -> Tensor:
    """Inverse sigmoid with ``p`` and ``1 - p`` clamped from below by ``eps``."""
    p = p.clamp(0, 1)
    return torch.log(p.clamp(min=eps) / (1 - p).clamp(min=eps))
