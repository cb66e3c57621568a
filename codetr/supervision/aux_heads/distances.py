"""Boxes as distances from a point to their four sides (Tian et al. 2019, FCOS, eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def centres_xyxy(boxes: Tensor) -> Tensor:
    """(..., 2) x and y of the centres of corner boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


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
