"""No neck."""

from __future__ import annotations

from torch import nn

from codetr.errors import UserError
from codetr.structures import Pyramid


class IdentityNeck(nn.Module):
    """The backbone's maps as they are (YOLOS).

    Raises UserError where their ``channels`` are not all ``dim``.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], dim: int = 256) -> None:
        super().__init__()
        if set(channels) != {dim}:
            raise UserError(
                f"without a neck, maps of {list(channels)} channels stay as they are, but "
                f"model.dim={dim}: set model.dim to their number, or take a model whose "
                "model.neck maps them"
            )
        self.strides = strides

    def forward(self, pyramid: Pyramid) -> Pyramid:
        """Maps (B, C, H_l, W_l) to the same."""
        return pyramid
