"""Sampling points of deformable attention, and their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr.errors import UserError
from codetr.models.layers import DeformableAttention


@dataclass(frozen=True)
class Samples:
    """``locations`` (B, Q, heads, L, P, 2) as (x, y), where [0, 1] spans each level; ``weights``
    (B, Q, heads, L, P), which sum to 1 per query and head; ``shapes`` (H, W) of the levels.
    """

    locations: Tensor
    weights: Tensor
    shapes: tuple[tuple[int, int], ...]

    def of(self, queries: Tensor) -> Samples:
        """The samples of the queries with indices ``queries`` (n,)."""
        return Samples(self.locations[:, queries], self.weights[:, queries], self.shapes)


@contextmanager
def record_samples(module: nn.Module) -> Iterator[list[Samples]]:
    """Record the samples of every deformable attention within ``module`` that is called in the
    block, in the order of the calls.
    """
    seen: list[Samples] = []

    def note(attention: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(attention, DeformableAttention)
        x, position, frame, _, _, shapes = inputs
        seen.append(Samples(*attention.samples(x, position, frame), shapes))

    hooks = [
        part.register_forward_pre_hook(note)
        for part in module.modules()
        if isinstance(part, DeformableAttention)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def require_samples(seen: list[Samples], source: str) -> list[Samples]:
    """The samples ``seen`` in the decoder of the checkpoint ``source``, by layer. Raises UserError
    if there are none.
    """
    if not seen:
        raise UserError(
            f"{source}: its decoder has no deformable attention, whose sampling points this "
            "analysis shows: leave it out"
        )
    return seen


def cell_weights(samples: Samples) -> list[Tensor]:
    """(H, W) per level, for a batch of one image: the weight with which each cell is read, summed
    over queries, heads and points. The weight of a point is distributed to the four cells that it
    is interpolated from; what falls outside the map is lost, as in the attention itself.
    """
    maps = []
    for level, (height, width) in enumerate(samples.shapes):
        points = samples.locations[0, :, :, level].reshape(-1, 2)
        weights = samples.weights[0, :, :, level].reshape(-1)
        place = points * points.new_tensor([width, height]) - 0.5
        low = place.floor()
        share = place - low
        result = weights.new_zeros(height * width)
        for right in (0, 1):
            for down in (0, 1):
                x, y = low[:, 0].long() + right, low[:, 1].long() + down
                part_x = share[:, 0] if right else 1 - share[:, 0]
                part_y = share[:, 1] if down else 1 - share[:, 1]
                inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                index = (y * width + x)[inside]
                result.index_add_(0, index, (weights * part_x * part_y)[inside])
        maps.append(result.unflatten(0, (height, width)))
    return maps


def attention_map(samples: Samples, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """An attention map of ``size`` (H, W) in [0, 1]: the cell weights of every level are resized
    bilinearly to the ``padded`` image, summed, cropped, and divided by their maximum.
    """
    resized = [
        F.interpolate(m[None, None], size=padded, mode="bilinear", align_corners=False)[0, 0]
        for m in cell_weights(samples)
    ]
    total = torch.stack(resized).sum(0)[: size[0], : size[1]]
    return total / total.max().clamp_min(torch.finfo(total.dtype).tiny)


def share_inside(samples: Samples, boxes: Tensor) -> Tensor:
    """(n,) for the n queries of one image: the share of each query's weight that lies in its box.
    ``boxes`` (n, 4) are xyxy in the coordinates of the locations.
    """
    x, y = samples.locations[0].unbind(-1)  # each (n, heads, L, P)
    left, top, right, bottom = (side[:, None, None, None] for side in boxes.unbind(-1))
    inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    weights = samples.weights[0]
    return (weights * inside).flatten(1).sum(1) / weights.flatten(1).sum(1)
