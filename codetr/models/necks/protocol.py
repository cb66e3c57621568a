"""The interface of a neck."""

from __future__ import annotations

from typing import Protocol

from codetr.structures import Pyramid


class Neck(Protocol):
    """An ``nn.Module``; ``strides`` (pixels) are those of its output maps."""

    strides: tuple[int, ...]

    def __call__(self, pyramid: Pyramid) -> Pyramid:
        """A backbone's maps (B, C_l, H_l, W_l) to maps (B, C, H_l, W_l), fine to coarse. Its
        detection tokens stay as they are.
        """
        ...
