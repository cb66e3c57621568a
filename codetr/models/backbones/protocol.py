"""The interface of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from codetr.structures import Pyramid


class Backbone(Protocol):
    """An ``nn.Module``: ``channels`` and ``strides`` (pixels) of its output maps; ``mean`` and
    ``std`` (RGB, 0 to 255) for the normalisation of its inputs.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor, padding: Tensor | None = None) -> Pyramid:
        """Normalised images (B, 3, H, W) to feature maps, fine to coarse. ``padding`` (B, H, W)
        bool, True = padding, None: no padding; most backbones ignore it, and see zeros there.
        """
        ...


@runtime_checkable
class HasBlocks(Protocol):
    """A backbone with most of its weights in ``blocks``, which it only uses by calling them, so
    that sharded weights can be gathered block by block.
    """

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks in the order of the forward pass."""
        ...
