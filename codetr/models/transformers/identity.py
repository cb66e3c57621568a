"""Maps as a memory of tokens: what encoders start from, and all there is without one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr.structures import Memory, Pyramid


class IdentityEncoder(nn.Module):
    """The neck's maps are the memory (ViDT, YOLOS)."""

    layers: tuple[nn.Module, ...] = ()

    def forward(self, pyramid: Pyramid, padding: Tensor) -> Memory:
        """``pyramid`` of (B, C, H_l, W_l) maps; ``padding`` (B, H, W) of the images."""
        return as_memory(pyramid, resize_masks(padding, pyramid.shapes))


def resize_masks(padding: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """``padding`` (B, H, W) bool of the images for maps of the given ``shapes``: (B, H_l, W_l)."""
    wide = padding[:, None].float()
    return [F.interpolate(wide, size=shape, mode="nearest")[:, 0].bool() for shape in shapes]


def as_memory(pyramid: Pyramid, masks: Sequence[Tensor]) -> Memory:
    """The maps as tokens; ``masks`` (B, H_l, W_l) bool are True in padding."""
    dtype = torch.float64 if pyramid.maps[0].dtype == torch.float64 else torch.float32
    valid = [(~mask).to(dtype) for mask in masks]
    ratios = [torch.stack([v[:, 0].mean(1), v[:, :, 0].mean(1)], dim=-1) for v in valid]
    return Memory(
        tokens=pyramid.tokens(),
        padding=torch.cat([mask.flatten(1) for mask in masks], dim=1),
        shapes=pyramid.shapes,
        strides=pyramid.strides,
        valid_ratios=torch.stack(ratios, dim=1),
        detection=pyramid.detection,
    )
