"""No encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codetr.models.transformers.encoder import resize_mask, valid_ratio
from codetr.structures import Memory, Pyramid


class IdentityEncoder(nn.Module):
    """The neck's maps as memory: what the backbone made of them is enough (ViDT, YOLOS)."""

    layers: tuple[nn.Module, ...] = ()

    def forward(self, pyramid: Pyramid, padding: Tensor) -> Memory:
        """``pyramid`` of (B, C, H_l, W_l) maps; ``padding`` (B, H, W) of the images."""
        masks = [resize_mask(padding, shape) for shape in pyramid.shapes]
        return Memory(
            tokens=torch.cat([m.flatten(2).transpose(1, 2) for m in pyramid.maps], dim=1),
            padding=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            shapes=pyramid.shapes,
            strides=pyramid.strides,
            valid_ratios=torch.stack([valid_ratio(m, pyramid.maps[0]) for m in masks], dim=1),
            detection=pyramid.detection,
        )
