import math

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from codetr.errors import UserError
from codetr.training.schedules import cosine_schedule, step_schedule


def optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def rates(schedule: LRScheduler, steps: int) -> list[float]:
    values = []
    for _ in range(steps):
        values.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return values


def test_drops_after_the_milestones() -> None:
    schedule = step_schedule(optimizer(), 10, epochs=3, milestones=[1, 2])
    values = rates(schedule, 30)
    assert values[:10] == [1.0] * 10
    assert values[10:20] == pytest.approx([0.1] * 10)
    assert values[20:] == pytest.approx([0.01] * 10)


def test_warm_up_is_linear() -> None:
    schedule = step_schedule(
        optimizer(), 10, epochs=1, milestones=[], warmup_steps=4, warmup_start=0.2
    )
    assert rates(schedule, 6) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_halves_in_the_middle_and_ends_at_final() -> None:
    schedule = cosine_schedule(optimizer(), 10, epochs=10, final=0.1)
    values = rates(schedule, 101)
    assert values[0] == 1.0
    assert values[50] == pytest.approx(0.55)
    assert values[25] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert values[100] == pytest.approx(0.1)
    assert values == sorted(values, reverse=True)


def test_cosine_stays_flat_first() -> None:
    values = rates(cosine_schedule(optimizer(), 10, epochs=10, flat=0.5), 60)
    assert values[:51] == [1.0] * 51
    assert values[51] < 1


def test_a_cosine_by_epoch_is_flat_within_epochs() -> None:
    steps = rates(cosine_schedule(optimizer(), 10, epochs=4, final=0.1), 41)
    epochs = rates(cosine_schedule(optimizer(), 10, epochs=4, final=0.1, by_epoch=True), 41)
    assert epochs == pytest.approx([steps[10 * (i // 10)] for i in range(41)])
    assert len(set(epochs)) == 5


def test_a_cosine_that_comes_late_is_shifted() -> None:
    options = {"epochs": 4, "final": 0.1, "by_epoch": True}
    whole = rates(cosine_schedule(optimizer(), 10, **options), 40)
    late = rates(cosine_schedule(optimizer(), 10, lag=1, **options), 40)
    assert late[:10] == [1.0] * 10
    assert late[10:] == whole[:30]


@pytest.mark.parametrize("milestones", [[13], [11, 8], [0]])
def test_milestones_outside_the_schedule_are_an_error(milestones: list[int]) -> None:
    with pytest.raises(UserError, match=r"schedule\.milestones"):
        step_schedule(optimizer(), 10, epochs=12, milestones=milestones)
