"""What a few runs say about all that could have been: means with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of ``count`` values: ``mean``, sample standard ``deviation``, and half the width of the
    confidence interval of the mean (``margin``); neither of the last two is known of one value.
    """

    mean: float
    deviation: float | None
    margin: float | None
    count: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The confidence interval of the mean."""
        return None if self.margin is None else (self.mean - self.margin, self.mean + self.margin)


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate | None:
    """Mean of ``values``, taken as normally distributed: the interval is that of Student's t with
    one degree of freedom less than there are values. None of no values.
    """
    count = len(values)
    if count == 0:
        return None
    if count == 1:
        return Estimate(mean=values[0], deviation=None, margin=None, count=1)
    deviation = stdev(values)
    quantile = float(t.ppf(0.5 + confidence / 2, count - 1))
    margin = quantile * deviation / math.sqrt(count)
    return Estimate(mean=fmean(values), deviation=deviation, margin=margin, count=count)


def paired(first: Mapping[int, float], other: Mapping[int, float]) -> Estimate | None:
    """How much ``other`` is above ``first``, both by seed: the differences of the seeds that both
    have. What a seed does to both (initial weights, order of images) is not in them.
    """
    return estimate([other[seed] - first[seed] for seed in sorted(first.keys() & other.keys())])
