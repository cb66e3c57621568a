"""The neck of detectors with dense attention: one map."""

from __future__ import annotations

from torch import nn

from codetr.errors import UserError
from codetr.structures import Pyramid


class Projection(nn.Module):
    """A 1x1 convolution of the backbone's last map to the transformer's width, without norm (DETR,
    section 3.2). Raises UserError where the backbone has more maps, which would not be used.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], dim: int = 256) -> None:
        super().__init__()
        if len(channels) != 1:
            raise UserError(
                f"model.neck, a Projection, takes one map, and the backbone gives {len(channels)}: "
                "set model.backbone.out_indices to one level"
            )
        self.strides = strides
        self.project = nn.Conv2d(channels[0], dim, 1)

    def forward(self, pyramid: Pyramid) -> Pyramid:
        """One map (B, C, H, W) to one (B, dim, H, W)."""
        (features,) = pyramid.maps
        return Pyramid(maps=(self.project(features),), strides=self.strides)
