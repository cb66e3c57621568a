"""Loss terms with their counts and weights, and their sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Count:
    """The divisor of a sum: ``number`` () of this process or, if ``shared``, its mean over
    processes (``codetr.training.losses.divided``); at least ``minimum``.
    """

    number: Tensor
    minimum: float = 1.0
    shared: bool = True

    @classmethod
    def of(cls, number: float, like: Tensor, *, shared: bool = True) -> Count:
        """A ``number`` from the host, with the dtype and device of ``like``."""
        value = torch.full((), float(number), dtype=like.dtype, device=like.device)
        return cls(value, shared=shared)

    def divisor(self) -> Tensor:
        """The divisor () by the number of this process alone."""
        return divisor(self.number.clamp(min=self.minimum))


def divisor(number: Tensor) -> Tensor:
    """``number`` plus the epsilon of its dtype, so that 0 / 0 becomes 0 (as mmdet)."""
    return number + torch.finfo(number.dtype).eps


class LossTerm(NamedTuple):
    """One loss: ``sum`` () divided by ``over`` is the unweighted value, which is logged; ``weight``
    applies only in the total. ``over`` is None where nothing is left to divide by.
    """

    sum: Tensor
    weight: float
    over: Count | None = None

    @property
    def value(self) -> Tensor:
        """The unweighted loss, with the count of this process."""
        return self.sum if self.over is None else self.sum / self.over.divisor()


Losses = dict[str, LossTerm]
"""Loss terms by name; outside of a scheme, the name is ``scheme/layer/name``."""


def total_loss(losses: Losses) -> Tensor:
    """The one place where losses are weighted and summed. Raises ValueError if there are none."""
    if not losses:
        raise ValueError("no loss to sum: add scheme=[one_to_one] or another scheme")
    values = torch.stack([term.value for term in losses.values()])
    weights = torch.tensor([term.weight for term in losses.values()], dtype=values.dtype)
    return (values * weights.to(values.device, non_blocking=True)).sum()


def prefixed(prefix: str, losses: Losses) -> Losses:
    """The same losses under ``prefix/name``."""
    return {f"{prefix}/{name}": term for name, term in losses.items()}


def scaled(factor: float, losses: Losses) -> Losses:
    """The same losses with weights multiplied by ``factor``; unweighted values do not change."""
    return {name: t._replace(weight=t.weight * factor) for name, t in losses.items()}
