"""The line that every epoch leaves in the log."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codetr.training.callbacks import EpochLine


def test_time_of_an_epoch_that_is_gone_on_with_in_its_middle(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = {"loss": torch.tensor(2.5)}
    trainer: Any = SimpleNamespace(
        is_global_zero=True, callback_metrics=metrics, current_epoch=16, max_epochs=24
    )
    line = EpochLine()
    with caplog.at_level(logging.INFO):
        line.on_train_start(trainer, None)  # type: ignore[arg-type]
        line.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    (message,) = caplog.messages
    assert message.startswith("epoch 17/24: loss 2.5 | ")
    assert float(message.split()[-2]) < 60
