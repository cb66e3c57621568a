from types import SimpleNamespace

import pytest
import torch

from codetr.training.callbacks import Throughput
from codetr.training.callbacks.speed import peak_memory_gib
from codetr.training.train import device_hours


def test_step_time_includes_the_time_before_an_interruption() -> None:
    before, after = Throughput(), Throughput()
    assert after.step_time_s is None
    before._total_time, before._total_steps = 6.0, 3
    after.load_state_dict(before.state_dict())
    assert after.step_time_s == 2.0


def test_device_hours_are_batches_times_devices() -> None:
    trainer = SimpleNamespace(global_step=900, accumulate_grad_batches=2, world_size=4)
    assert device_hours(trainer, 0.5) == pytest.approx(1.0)  # type: ignore[arg-type]
    assert device_hours(trainer, None) is None  # type: ignore[arg-type]


def test_peak_memory_is_that_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    assert peak_memory_gib(torch.device("cuda", 1)) == 1.5
    assert peak_memory_gib(torch.device("cpu")) != 1.5
