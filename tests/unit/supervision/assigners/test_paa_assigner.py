"""PAA's assignment and its mixtures against loops in plain Python."""

import math

import pytest
import torch
from torch import Tensor

from codetr.supervision.assigners.max_iou import IGNORED, NEGATIVE
from codetr.supervision.assigners.mixture import MixtureFit
from codetr.supervision.assigners.paa import PaaAssigner

LEVELS = (40, 20, 6, 1)


def log_joint(x: float, weight: float, mean: float, variance: float) -> float:
    exponent = (x - mean) ** 2 / variance + math.log(2 * math.pi * variance)
    return math.log(weight) - 0.5 * exponent


def log_sum(a: float, b: float) -> float:
    high = max(a, b)
    return high + math.log(math.exp(a - high) + math.exp(b - high))


def naive_mixture(values: list[float]) -> tuple[list[tuple[float, float, float]], int]:
    """(weight, mean, variance) of both components, and the number of iterations."""
    parts = [(0.5, min(values), 1.0), (0.5, max(values), 1.0)]
    before = -math.inf
    steps = 0
    while steps < 100:
        steps += 1
        joint = [[log_joint(x, *part) for x in values] for part in parts]
        total = [log_sum(a, b) for a, b in zip(*joint, strict=True)]
        parts = []
        for row in joint:
            share = [math.exp(a - b) for a, b in zip(row, total, strict=True)]
            mass = sum(share) + 10 * 2.220446049250313e-16
            mean = sum(s * x for s, x in zip(share, values, strict=True)) / mass
            square = sum(s * x * x for s, x in zip(share, values, strict=True)) / mass
            parts.append((mass / len(values), mean, square - mean**2 + 1e-6))
        likelihood = sum(total) / len(values)
        if abs(likelihood - before) < 1e-3:
            break
        before = likelihood
    return parts, steps


def naive_paa(proposed: list[int], losses: list[float], count: int) -> list[int]:
    assigned = [IGNORED if p == IGNORED else NEGATIVE for p in proposed]
    for box in range(count):
        pool, start = [], 0
        for size in LEVELS:
            own = [i for i in range(start, start + size) if proposed[i] == box]
            pool += sorted(own, key=lambda i: losses[i])[:9]
            start += size
        pool.sort(key=lambda i: losses[i])
        if len(pool) < 2:
            continue
        (low, high), _ = naive_mixture([losses[i] for i in pool])
        lower = [i for i in pool if log_joint(losses[i], *low) >= log_joint(losses[i], *high)]
        if not lower:
            continue
        density = [log_sum(log_joint(losses[i], *low), log_joint(losses[i], *high)) for i in lower]
        for index in lower[: density.index(max(density)) + 1]:
            assigned[index] = box
    return assigned


def proposals(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random boxes (few of them likely, so that pools overflow) and two-peaked losses."""
    torch.manual_seed(seed)
    size = sum(LEVELS)
    proposed = torch.randint(0, max(count, 1), (size,)) if count else torch.full((size,), NEGATIVE)
    draw = torch.rand(size)
    proposed = torch.where(draw < 0.15, NEGATIVE, proposed)
    proposed = torch.where(draw < 0.05, IGNORED, proposed)
    losses = torch.rand(size, dtype=torch.float64) + 2 * (torch.rand(size) < 0.5)
    return proposed, losses


@pytest.mark.parametrize("count", [0, 1, 3, 12, 40])
@pytest.mark.parametrize("seed", range(3))
def test_assignment_equals_loops(count, seed) -> None:
    """Two images at once: the second one has other numbers of boxes and candidates."""
    cases = [(count, *proposals(count, seed)), (2, *proposals(2, seed + 10))]
    found = PaaAssigner()(
        torch.stack([proposed for _, proposed, _ in cases]),
        torch.stack([losses for _, _, losses in cases]),
        LEVELS,
        [n for n, _, _ in cases],
    )
    for ours, (n, proposed, losses) in zip(found, cases, strict=True):
        assert ours.tolist() == naive_paa(proposed.tolist(), losses.tolist(), n)
    assert found[1].max() >= 0


def test_mixtures_equal_loops_and_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    kinds = ((2, 1.0), (30, 20.0), (30, 0.01), (9, 5.0), (17, 2.0), (5, 0.0), (30, 1.0))
    columns = [torch.rand(n, dtype=torch.float64) * spread for n, spread in kinds]
    table = torch.full((30, len(columns)), torch.inf, dtype=torch.float64)
    for number, column in enumerate(columns):
        table[: len(column), number] = column.sort().values
    fitted = MixtureFit()(table)
    iterations = set()
    for number, column in enumerate(columns):
        parts, steps = naive_mixture(column.tolist())
        iterations.add(steps)
        assert fitted.iterations[number] == steps
        ours = torch.stack([fitted.weights, fitted.means, fitted.variances])[..., number].T
        torch.testing.assert_close(ours, torch.tensor(parts, dtype=torch.float64))
    assert len(iterations) > 2


def test_a_fit_that_does_not_settle_ends_after_its_iterations() -> None:
    values = torch.linspace(0, 9, 20)[:, None]
    assert MixtureFit(iterations=4)(values).iterations.tolist() == [4]


def test_float32_losses_close_together_stay_finite() -> None:
    """In float32 the variance of values of size 100 that differ by 1e-4 would come out negative."""
    values = (100 + torch.linspace(0, 1e-4, 20))[:, None]
    fitted = MixtureFit()(values)
    assert fitted.variances.gt(0).all()
    assert fitted.log_joint(values).isfinite().all()


def test_a_lone_candidate_is_not_positive() -> None:
    proposed = torch.full((sum(LEVELS),), NEGATIVE)
    proposed[7] = 0
    found = PaaAssigner()(proposed[None], torch.rand(1, sum(LEVELS)), LEVELS, [1])
    assert found[0].eq(NEGATIVE).all()
