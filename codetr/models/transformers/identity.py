"""No encoder."""

from __future__ import annotations

from torch import Tensor, nn

from codetr.structures import Memory, Pyramid


class IdentityEncoder(nn.Module):
    """The neck's maps are the memory (ViDT, YOLOS)."""

    layers: tuple[nn.Module, ...] = ()

    def forward(self, pyramid: Pyramid, padding: Tensor) -> Memory:
        """``pyramid`` of (B, C, H_l, W_l) maps; ``padding`` (B, H, W) of the images."""
        return pyramid.memory(pyramid.masks(padding))
