"""Greedy suppression (NMS) of many sets of boxes, none of which sees the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms


def surviving(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """(T,) bool: which of ``boxes`` (T, 4) xyxy with ``scores`` (T,) are kept at overlap ``iou``.

    ``sizes`` are those of the sets, which lie one after the other. Set by set on the CPU, where
    time grows with the square; all at once elsewhere, where every call is waited for.
    """
    if boxes.device.type == "cpu":
        return set_by_set(boxes, scores, sizes, iou)
    return all_at_once(boxes, scores, sizes, iou)


def set_by_set(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """``surviving`` by one call per set."""
    kept, start = [], 0
    for own, score in zip(boxes.split(list(sizes)), scores.split(list(sizes)), strict=True):
        kept.append(nms(own, score, iou) + start)
        start += len(own)
    return _marked(torch.cat(kept), len(boxes))


def all_at_once(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """``surviving`` by one call, with the sets moved apart; in float64, so that overlaps stay."""
    steps = [torch.full((size,), number, device=boxes.device) for number, size in enumerate(sizes)]
    apart = boxes.double()
    apart = apart + (torch.cat(steps) * (apart.max() - apart.min() + 1))[:, None]
    return _marked(nms(apart, scores.double(), iou), len(boxes))


def _marked(index: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool, device=index.device).index_fill(0, index, True)
