"""Intervals against tables of Student's t, and by what they promise."""

import numpy as np
import pytest

from tools.sweeps.estimates import estimate, paired


def test_known_intervals() -> None:
    """t of 0.975: 12.706 for one degree of freedom, 2.776 for four (any printed table)."""
    assert estimate([]) is None
    one = estimate([0.5])
    assert one is not None
    assert (one.mean, one.deviation, one.interval, one.count) == (0.5, None, None, 1)
    two = estimate([1.0, 3.0])
    assert two is not None
    assert (two.mean, two.deviation) == (2.0, pytest.approx(2**0.5))
    assert two.interval == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)
    five = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert five is not None
    assert five.margin == pytest.approx(2.776 * 2.5**0.5 / 5**0.5, abs=1e-3)
    assert estimate([2.0, 2.0, 2.0]).interval == (2.0, 2.0)  # type: ignore[union-attr]


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    samples = np.random.default_rng(0).normal(0.3, 0.02, (4000, 5))
    found = [estimate(row.tolist()).interval for row in samples]  # type: ignore[union-attr]
    held = np.mean([low <= 0.3 <= high for low, high in found])  # type: ignore[misc]
    assert held == pytest.approx(0.95, abs=0.015)


def test_what_a_seed_does_to_both_is_not_in_the_difference() -> None:
    first = {0: 0.30, 1: 0.50, 2: 0.40}
    other = {2: 0.45, 0: 0.35, 1: 0.55, 7: 0.99}
    found = paired(first, other)
    assert found is not None
    assert (found.mean, found.count) == (pytest.approx(0.05), 3)
    assert found.margin == pytest.approx(0, abs=1e-12)
    assert paired(first, {9: 1.0}) is None
    assert paired(first, first).mean == 0  # type: ignore[union-attr]
