"""The classification cost of matching a query with a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from codetr.classification import Sigmoid, Softmax


class ClassCost(Protocol):
    """A classification cost with its settings."""

    @property
    def reads(self) -> type:
        """The kind of ``codetr.classification`` whose logits it takes."""
        ...

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Costs (L, N, Q) of ``labels`` (N,) for queries with ``logits`` (L, Q, width)."""
        ...


@dataclass(frozen=True)
class FocalCost:
    """The focal loss of the target's class as a positive, minus that as a negative (Deformable
    DETR). ``eps`` is added to probabilities in logarithms (mmdet 1e-12, DETR's descendants 1e-8).
    """

    alpha: float = 0.25
    gamma: float = 2.0
    eps: float = 1e-12
    reads = Sigmoid

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See ``ClassCost``."""
        p = logits[..., labels].mT.sigmoid()
        positive = -torch.log(p + self.eps) * self.alpha * (1 - p) ** self.gamma
        negative = -torch.log(1 - p + self.eps) * (1 - self.alpha) * p**self.gamma
        return positive - negative


FOCAL = FocalCost()


@dataclass(frozen=True)
class ProbabilityCost:
    """Minus the probability of the class, after a softmax (DETR, section 3.1; YOLOS)."""

    reads = Softmax

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See ``ClassCost``."""
        return -logits.softmax(-1)[..., labels].mT
