"""The largest batch, where memory ends at a known size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from codetr.errors import UserError
from codetr.training.tuning import command
from codetr.training.tuning.batch_size import batch_limit, batch_text, dividing, largest


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 9, 30])
@pytest.mark.parametrize("room", range(34))
def test_it_is_the_largest_that_fits_within_the_limit(room: int, limit: int) -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= room

    found = largest(fits, limit)
    assert found == min(room, limit)
    assert all(1 <= size <= limit for size in asked)
    assert len(set(asked)) == len(asked)
    assert found == 0 or found in asked  # it was tried


@pytest.mark.parametrize("effective_batch", [1, 2, 7, 12, 16])
@pytest.mark.parametrize("size", range(1, 20))
def test_batches_accumulate_to_the_images_of_a_step(size: int, effective_batch: int) -> None:
    divisors = [n for n in range(1, effective_batch + 1) if effective_batch % n == 0]
    assert dividing(size, effective_batch) == max(n for n in divisors if n <= size)
    assert dividing(size, None) == size


def test_a_gpu_needs_no_limit() -> None:
    assert batch_limit(None, 300, torch.device("cuda")) == 300
    assert batch_limit(8, 300, torch.device("cuda")) == 8
    assert batch_limit(8, 300, torch.device("cpu")) == 8
    assert batch_limit(8, 5, torch.device("cpu")) == 5
    with pytest.raises(UserError, match=r"on a CPU: .* give finder\.largest_batch=N"):
        batch_limit(None, 300, torch.device("cpu"))


def test_the_line_says_what_is_known() -> None:
    assert "6 images fit into memory (7 do not)" in batch_text(6, 64, None)
    assert "(no more were tried); with it, give trainer.effective_batch=N" in batch_text(
        64, 64, None
    )
    text = batch_text(6, 16, 16)
    assert text.startswith("data.batch_size=4: batches of 6 images fit")
    assert text.endswith("4 batches of 4 make trainer.effective_batch=16")
    assert "1 batch of 16 make" in batch_text(16, 16, 16)


class Memory:
    """A trainer whose device has room for so many images."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error

    def fit(self, module: nn.Module, datamodule: Any) -> None:
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        if datamodule.batch_size > self.room:
            raise self.error


def trial(
    monkeypatch: pytest.MonkeyPatch, room: int, error: Exception
) -> tuple[command.Trial, nn.Module]:
    monkeypatch.setattr(command, "_trainer", lambda cfg, callbacks: Memory(room, error))
    cfg, module = OmegaConf.create({"callbacks": {"ema": None}}), nn.Linear(1, 1)
    data: Any = SimpleNamespace(batch_size=2)
    return command.Trial(cfg, module, data), module  # type: ignore[arg-type]


def test_memory_that_is_full_ends_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    tried, module = trial(monkeypatch, 5, error)
    assert largest(tried.fits, 64) == 5
    assert tried.tried == {1: True, 2: True, 4: True, 8: False, 6: False, 5: True}
    assert all(parameter.grad is None for parameter in module.parameters())


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, _ = trial(monkeypatch, 1, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        largest(tried.fits, 64)
