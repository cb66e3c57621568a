"""Non-maximum suppression within many sets of boxes at once: the levels of a batch of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms


def surviving(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """(B, T) bool: which of an image's ``boxes`` (B, T, 4) xyxy with ``scores`` (B, T) are kept at
    overlap ``iou``.

    ``sizes`` are those of an image's sets, which lie one after the other. One call per set on the
    CPU, where time grows with the square; one per image elsewhere, where every call is waited for.
    """
    way = set_by_set if boxes.device.type == "cpu" else image_by_image
    return way(boxes, scores, sizes, iou)


def set_by_set(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """``surviving`` by one call per set."""
    kept = [
        _kept(own, score, iou)
        for own, score in zip(
            boxes.flatten(0, 1).split(list(sizes) * len(boxes)),
            scores.flatten().split(list(sizes) * len(boxes)),
            strict=True,
        )
    ]
    return torch.cat(kept).view_as(scores)


def image_by_image(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """``surviving`` by one call per image, with its sets moved apart; the memory of a call on a
    GPU grows with the square of its boxes.

    In float64: far from the origin float32 rounds boxes so that other ones are kept.
    """
    steps = [torch.full((size,), number, device=boxes.device) for number, size in enumerate(sizes)]
    apart = boxes.double()
    apart = apart + (torch.cat(steps) * (apart.max() - apart.min() + 1))[:, None]
    pairs = zip(apart, scores.double(), strict=True)
    return torch.stack([_kept(own, score, iou) for own, score in pairs])


def _kept(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """(T,) bool: which of (T, 4) boxes one NMS keeps."""
    index = nms(boxes, scores, iou)
    return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device).index_fill(0, index, True)
