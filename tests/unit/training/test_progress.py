"""The line that every epoch leaves in the log."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codetr.loss_terms import LossTerm
from codetr.training.callbacks import BestResult, EpochLine, progress
from codetr.training.callbacks.progress import RunProgressBar, SilentProgressBar, duration
from codetr.training.loss_meter import LossMeter


def module_of(*totals: float) -> Any:
    """A module that has trained steps with these losses, which are not logged yet."""
    meter = LossMeter()
    for total in totals:
        meter.update({"x": LossTerm(torch.tensor(0.0), 1.0)}, torch.tensor(total))
    return SimpleNamespace(meter=meter)


def test_a_line_has_the_values_of_its_own_epoch(caplog: pytest.LogCaptureFixture) -> None:
    before = {"loss": torch.tensor(9.0), "val/AP": torch.tensor(0.5)}
    trainer: Any = SimpleNamespace(
        is_global_zero=True, callback_metrics=before, current_epoch=1, max_epochs=2
    )
    line, module = EpochLine(), module_of(2.0, 4.0)
    with caplog.at_level(logging.INFO):
        line.on_train_epoch_start(trainer, module)
        line.on_train_epoch_end(trainer, module)
        line.on_train_epoch_start(trainer, module)
        line.on_validation_end(trainer, module)
        line.on_train_epoch_end(trainer, module)
    without, validated = [message.rpartition(" | ")[0] for message in caplog.messages]
    assert without == "epoch 2/2: loss 3"
    assert validated == "epoch 2/2: loss 3 | val/AP 0.5"


def test_epoch_time_after_resuming_within_an_epoch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = {"loss": torch.tensor(2.5)}
    trainer: Any = SimpleNamespace(
        is_global_zero=True, callback_metrics=metrics, current_epoch=16, max_epochs=24
    )
    line = EpochLine()
    with caplog.at_level(logging.INFO):
        line.on_train_start(trainer, None)  # type: ignore[arg-type]
        line.on_train_epoch_end(trainer, module_of())
    (message,) = caplog.messages
    assert message.startswith("epoch 17/24: loss 2.5 | ")
    assert float(message.split()[-2]) < 60


class Clock:
    """Time that passes by the second, when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


def run_of(epochs: int, batches: int, callbacks: list[Any]) -> Any:
    return SimpleNamespace(
        is_global_zero=True,
        max_epochs=epochs,
        num_training_batches=batches,
        current_epoch=0,
        callbacks=callbacks,
        callback_metrics={"loss": torch.tensor(2.5)},
        progress_bar_metrics={"v_num": "x"},
    )


def test_remaining_time_is_logged_after_a_few_steps_and_then_regularly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, line = Clock(monkeypatch), EpochLine(first=3, minutes=1.0)
    trainer: Any = run_of(2, 100, [line])
    with caplog.at_level(logging.INFO):
        line.on_train_start(trainer, None)  # type: ignore[arg-type]
        line.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
        for i in range(70):
            clock.now += 500.0 if i == 0 else 1.0  # the first compiles
            line.on_train_batch_end(trainer, None, None, None, i)  # type: ignore[arg-type]
    expected, *lines = [m for m in caplog.messages if "batch 1/100" not in m]
    assert expected.startswith("1 s per batch: about 3 min to the last of 2 epochs")
    assert lines == ["epoch 1/2, batch 62/100: loss 2.5 | 2 min left"]


def test_progress_bar_shows_loss_best_ap_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    best = BestResult()
    best.metrics = {"AP": 0.31234}
    clock, bar = Clock(monkeypatch), RunProgressBar()
    trainer: Any = run_of(3, 50, [best, bar])
    bar._trainer = trainer
    monkeypatch.setattr(
        progress.RichProgressBar, "get_metrics", lambda self, t, m: dict(t.progress_bar_metrics)
    )
    monkeypatch.setattr(progress.RichProgressBar, "on_train_batch_end", lambda *_: None)
    assert bar._get_train_description(0) == "epoch 1/3"
    for i in range(12):
        clock.now += 60.0
        outputs = {"loss": torch.tensor(7.0)}
        bar.on_train_batch_end(trainer, None, outputs, None, i)  # type: ignore[arg-type]
        shown = bar.get_metrics(trainer, None)  # type: ignore[arg-type]
        assert shown["loss"] == 7.0
    assert shown["best AP"] == 0.312
    assert shown["left"] == "2 h 18 min"
    assert "v_num" not in shown
    trainer.progress_bar_metrics["loss"] = 5.0
    assert bar.get_metrics(trainer, None)["loss"] == 5.0  # type: ignore[arg-type]


def test_there_is_no_bar_without_a_terminal() -> None:
    assert isinstance(progress.progress_bar(), SilentProgressBar)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.4, "7 s"), (600, "10 min"), (3600 * 3 + 1200, "3 h 20 min"), (86400 * 2.5, "2 d 12 h")],
)
def test_durations_as_text(seconds: float, text: str) -> None:
    assert duration(seconds) == text
