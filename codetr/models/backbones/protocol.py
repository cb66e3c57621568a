"""What a backbone is to a detector."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from codetr.structures import Pyramid


class Backbone(Protocol):
    """An ``nn.Module``: ``channels`` and ``strides`` (pixels) of the maps that it gives; ``mean``
    and ``std`` (RGB, 0 to 255) are what its inputs must be normalised with.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor, padding: Tensor | None = None) -> Pyramid:
        """Normalised images (B, 3, H, W) to feature maps, fine to coarse. ``padding`` (B, H, W)
        bool, True = no image there, None: nowhere; most look at the zeros there as at any pixel.
        """
        ...
