"""The range test against closed forms: what it records, what it suggests, when it stops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from codetr.errors import UserError
from codetr.training.tuning.learning_rate import LossCurve, RangeTest, RateRange, rising

BASE, SLOW = 0.01, 0.1
"""Rate of the first group, and the multiple of it that the second one has."""


class Bowl(LightningModule):
    """``sum(curvature * weight^2) / 2`` times each number of the data, by plain gradient descent:
    a step multiplies a weight by ``1 - rate * curvature``.
    """

    def __init__(self, span: RateRange, curvatures: Sequence[float]) -> None:
        super().__init__()
        self.span, self.curvatures = span, curvatures
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in curvatures])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        parts = [c * w**2 / 2 for c, w in zip(self.curvatures, self.weights, strict=True)]
        return torch.stack(parts).sum() * batch.mean()

    def configure_optimizers(self) -> Any:
        rates = [BASE, SLOW * BASE]
        groups = [{"params": [w], "lr": r} for w, r in zip(self.weights, rates, strict=True)]
        optimizer = torch.optim.SGD(groups)
        schedule = rising(optimizer, 1, span=self.span, base=BASE)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def run(module: Bowl, data: Sequence[float], curve: LossCurve, **options: Any) -> list[float]:
    """The losses of a sweep through the module's span, over as many epochs as it needs."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=module.span.steps,
        callbacks=[curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(torch.tensor(data), batch_size=1))
    return curve.losses


def closed_form(span: RateRange, curvatures: Sequence[float]) -> list[float]:
    """The loss before each step of gradient descent."""
    weights, losses = np.ones(len(curvatures)), []
    for step in range(span.steps):
        losses.append(float((np.array(curvatures) * weights**2).sum() / 2))
        rates = span.rate(step) * np.array([1.0, SLOW])
        weights = weights * (1 - rates * np.array(curvatures))
    return losses


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),  # Lightning's use of torch
]


def test_losses_are_those_of_every_group_at_its_own_multiple_of_the_rate() -> None:
    span, curvatures = RateRange(least=1e-4, most=1.0, steps=60), (1.0, 8.0)
    losses = run(Bowl(span, curvatures), [1.0] * 7, LossCurve(4.0))
    expected = closed_form(span, curvatures)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    same_rate_for_both = closed_form(span, (1.0, 8.0 / SLOW))
    assert not np.allclose(losses, same_rate_for_both, rtol=0.1)


def test_a_suggestion_lies_where_gradient_descent_converges() -> None:
    span = RateRange(least=1e-4, most=10.0, steps=100)
    losses = run(Bowl(span, (4.0, 0.0)), [1.0], LossCurve(4.0))
    suggestion = RangeTest.of(span, losses).suggestion()
    assert 0.01 < suggestion < 2 / 4  # above, a step enlarges the weight
    assert len(losses) < span.steps  # it ended as the loss grew


def test_batches_of_a_step_are_averaged_also_where_the_last_step_has_fewer() -> None:
    span = RateRange(least=1e-9, most=2e-9, steps=20)  # the weights stay at one
    data = [1.0, 3.0, 5.0]
    losses = run(Bowl(span, (2.0, 0.0)), data, LossCurve(100.0), accumulate_grad_batches=2)
    np.testing.assert_allclose(losses, [2.0, 5.0] * 10, rtol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6])
def test_it_stops_when_the_loss_diverges(bad: float) -> None:
    span = RateRange(least=1e-9, most=2e-9, steps=50)
    losses = run(Bowl(span, (2.0, 0.0)), [1.0] * 12 + [bad] * 20, LossCurve(4.0))
    assert len(losses) == 13


def falling(span: RateRange, centre: float) -> list[float]:
    """Falls most steeply at ``centre``, over the logarithm of the rate."""
    rates = [span.rate(step) for step in range(span.steps)]
    return [5 - 3 * math.tanh(2 * math.log10(rate / centre)) for rate in rates]


@pytest.mark.parametrize("centre", [1e-4, 2e-3, 3e-2])
def test_the_steepest_fall_is_suggested(centre: float) -> None:
    span = RateRange(least=1e-6, most=1.0, steps=121)
    noise = np.random.default_rng(0).normal(0, 0.05, span.steps)
    losses = np.array(falling(span, centre)) + noise
    suggestion = RangeTest.of(span, list(losses)).suggestion()
    assert abs(math.log10(suggestion / centre)) < 0.15


def test_a_fall_after_the_lowest_loss_is_none() -> None:
    span = RateRange(least=1e-6, most=1.0, steps=121)
    losses = falling(span, 1e-4)
    losses[100:] = [7.9] * 11 + [3.0] * 10  # not yet diverged
    assert abs(math.log10(RangeTest.of(span, losses).suggestion() / 1e-4)) < 0.15


@pytest.mark.parametrize("steps", [20, 30, 100])
def test_noise_alone_suggests_nothing(steps: int) -> None:
    span, generator = RateRange(least=1e-6, most=1.0, steps=steps), np.random.default_rng(1)
    told = 0
    for _ in range(100):
        try:
            RangeTest.of(span, generator.normal(10, 1, steps).tolist()).suggestion()
        except UserError:
            told += 1
    assert told >= 95


def test_what_is_not_finite_is_left_out() -> None:
    span = RateRange(least=1e-6, most=1.0, steps=121)
    test = RangeTest.of(span, [*falling(span, 1e-4)[:80], math.nan, math.inf])
    assert len(test.losses) == len(test.rates) == 80
    assert abs(math.log10(test.suggestion() / 1e-4)) < 0.15


def test_rates_are_even_in_their_logarithm_and_stay_at_the_end() -> None:
    span = RateRange(least=1e-4, most=1.0, steps=5)
    np.testing.assert_allclose([span.rate(n) for n in range(7)], [1e-4, 1e-3, 1e-2, 0.1, 1, 1, 1])


def test_all_groups_keep_their_ratios() -> None:
    weights = [nn.Parameter(torch.zeros(())) for _ in range(3)]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, (2e-4, 2e-5, 1e-6), strict=True)]
    optimizer = torch.optim.AdamW(groups)
    schedule = partial(rising, span=RateRange(least=1e-6, most=1e-2, steps=5), base=2e-4)
    scheduler, seen = schedule(optimizer, 100), []
    for _ in range(5):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(np.array(seen)[:, 0], [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    np.testing.assert_allclose(np.array(seen) / np.array(seen)[:, :1], [[1, 0.1, 0.005]] * 5)


def test_what_cannot_be_told_is_said() -> None:
    span = RateRange(least=1e-6, most=1.0, steps=50)
    with pytest.raises(
        UserError, match=r"diverged after 3 of 50 steps: lower finder\.lr_min=1e-06"
    ):
        RangeTest.of(span, [1.0, 2.0, 3.0, math.nan])
    for losses in ([1.0] * 50, [float(step) for step in range(50)]):
        with pytest.raises(UserError, match=r"a rate of 1e-06 to 1 .* not fall beyond its noise"):
            RangeTest.of(span, losses).suggestion()
    for most in (1e-6, 1e-7):
        with pytest.raises(UserError, match=r"finder\.lr_min=1e-06 is not below finder\.lr_max"):
            RateRange(least=1e-6, most=most, steps=50)
