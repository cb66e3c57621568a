"""The part of the second stage that turns region features into classes and offsets.

Official parameter names (mmdet ``Shared2FCBBoxHead``) and ours: ``shared_fcs.i`` are ``fcs.i``;
``fc_cls``, ``fc_reg`` are ``cls``, ``reg``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

from torch import Tensor, nn


class BoxHead(Protocol):
    """Any such part, an ``nn.Module``: ``roi_size`` is the side of the features it takes."""

    roi_size: int

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C, roi_size, roi_size) to logits (R, K + 1), background last, and deltas
        (R, K, 4), or (R, 1, 4) if all classes share them.
        """
        ...


class SharedFcBoxHead(nn.Module):
    """``num_fcs`` hidden layers of width ``fc_dim`` that both branches share; offsets per class."""

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        fc_dim: int = 1024,
        num_fcs: int = 2,
        roi_size: int = 7,
    ) -> None:
        super().__init__()
        self.roi_size = roi_size
        widths = [channels * roi_size**2, *[fc_dim] * num_fcs]
        self.fcs = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.cls = nn.Linear(widths[-1], num_classes + 1)
        self.reg = nn.Linear(widths[-1], num_classes * 4)
        for layer in self.fcs:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for branch, std in ((self.cls, 0.01), (self.reg, 0.001)):
            nn.init.normal_(branch.weight, std=std)
            nn.init.zeros_(branch.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """See ``BoxHead``."""
        hidden = features.flatten(1)
        for layer in self.fcs:
            hidden = layer(hidden).relu()
        return self.cls(hidden), self.reg(hidden).unflatten(1, (-1, 4))
