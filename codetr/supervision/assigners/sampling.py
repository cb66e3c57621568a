"""Choice of anchors or regions: at random, or the best of each level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.supervision.assigners.max_iou import NEGATIVE
from codetr.tensor_struct import TensorStruct


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

    def __call__(self, assigned: Sequence[Tensor]) -> list[Sample]:
        """Sample from the result (A_b,) of an assigner for every image. The host needs the numbers
        of positives and negatives: one copy from the device serves all images.
        """
        kinds = [(own >= 0, own == NEGATIVE) for own in assigned]
        counts = torch.stack([torch.stack([kind.sum() for kind in own]) for own in kinds]).tolist()
        samples = []
        for (positive, negative), (many, others) in zip(kinds, counts, strict=True):
            few = min(many, int(self.size * self.positive_share))
            rest = min(others, self.size - few)
            samples.append(
                Sample(
                    positive=ranked(positive, _drawn(many, few)),
                    negative=ranked(negative, _drawn(others, rest)),
                )
            )
        return samples


def best_of_levels(
    values: Tensor, level_sizes: Sequence[int], limit: int, dim: int, *, largest: bool = True
) -> Tensor:
    """Indices along ``dim`` of the ``limit`` largest (or smallest) ``values`` of each level, best
    first, level by level; all of a level that has fewer.
    """
    found, start = [], 0
    for level, size in zip(values.split(list(level_sizes), dim), level_sizes, strict=True):
        found.append(level.topk(min(limit, size), dim, largest).indices + start)
        start += size
    return torch.cat(found, dim)


def positives_first(positive: Tensor, limit: int) -> Tensor:
    """At most ``limit`` random indices into ``positive`` (A,) bool, all True entries before any
    False one. Drawn on the CPU, so that a seed gives the same result on every device.
    """
    draw = torch.rand(len(positive)).to(positive.device, non_blocking=True)
    return (draw + positive).topk(min(limit, len(positive))).indices


def _drawn(count: int, limit: int) -> Tensor:
    """``limit`` of ``count`` ranks at random, sorted; all of them, without a draw, if equal.

    The permutation comes from the CPU generator, so that a seed gives the same sample on every
    device.
    """
    if count == limit:
        return torch.arange(count)
    return torch.randperm(count)[:limit].sort().values


def ranked(eligible: Tensor, ranks: Tensor) -> Tensor:
    """Indices (R,) of the True entries of ``eligible`` (A,) of the given ``ranks`` (R,), counted
    from 0; every rank must exist. Unlike ``nonzero``, this does not synchronise with the device;
    ``ranks`` come from the host, by an asynchronous copy where the driver queues it (CUDA: small
    ones, from pageable memory).
    """
    ranks = ranks.to(eligible.device, non_blocking=True)
    return torch.searchsorted(eligible.cumsum(0), ranks + 1)
