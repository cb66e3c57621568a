"""Random choice of the anchors or regions that enter a loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.assigners.max_iou import NEGATIVE
from codetr.structures import TensorStruct


@dataclass(frozen=True, kw_only=True)
class Sample(TensorStruct):
    """Chosen indices of one image, each list in ascending order: ``positive`` (P,),
    ``negative`` (M,).
    """

    positive: Tensor
    negative: Tensor

    @property
    def index(self) -> Tensor:
        """(P + M,) positives first."""
        return torch.cat([self.positive, self.negative])


@dataclass(frozen=True, kw_only=True)
class RandomSampler:
    """``size`` anchors, of which at most the share ``positive_share`` are positive; background
    fills up (Ren et al. 2015, section 3.1.3). Fewer where there are not enough.
    """

    size: int
    positive_share: float

    def __call__(self, assigned: Tensor) -> Sample:
        """Sample from ``assigned`` (A,), what an assigner returned."""
        positive = _draw(assigned >= 0, int(self.size * self.positive_share))
        negative = _draw(assigned == NEGATIVE, self.size - len(positive))
        return Sample(positive=positive, negative=negative)


def _draw(eligible: Tensor, limit: int) -> Tensor:
    """Sorted indices of at most ``limit`` random True entries.

    The permutation comes from the CPU generator, so that a seed gives the same sample on every
    device.
    """
    found = eligible.nonzero().squeeze(1)
    if len(found) <= limit:
        return found
    chosen = torch.randperm(len(found))[:limit]
    return found[chosen.to(found.device)].sort().values
