"""Training runs that are killed, and what they leave."""

import csv
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch
from commands import arguments, environment
from torch import Tensor
from warm import TIMEOUT_S, Warm

TINY = (
    "data.source.num_train=12",
    "data.source.num_val=4",
    "data.source.size=64",
    "data.batch_size=2",
    "data.eval_batch_size=1",
    "logger=[csv]",
    "trainer=cpu",
    "trainer.log_every_n_steps=2",
    "trainer.effective_batch=4",
    "schedule.warmup_steps=0",
    "schedule.epochs=2",
    "model.dim=32",
    "model.heads=4",
    "model.hidden=32",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.num_queries=20",
    "model.backbone.name=resnet10t",
    "ops.msda=torch",
    "augmentation=small",
    "callbacks=ema",
    "callbacks.preview=null",
    "callbacks.panel=null",
    "callbacks.curves=null",
)
"""Two epochs of three optimiser steps of two batches, a tenth of a second each."""
RANKS = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32")
CLOCK = "perf/"
"""Begins the columns of metrics.csv that no two runs have in common."""


@dataclass(frozen=True)
class Place:
    """Where a run is: its ``runs`` folder lies in ``folder``."""

    folder: Path
    options: tuple[str, ...]
    name: str = "run"

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "runs" / self.name

    def start(self, *more: str, **env: str) -> Warm:
        """Start or continue the run."""
        own = (*self.options, *more, f"name={self.name}", "ckpt_path=last")
        return Warm(arguments("train.py", *own), self.folder, {**environment(), **env})

    def train(self, *more: str) -> "CompletedProcess[str]":
        """Train to the end."""
        return self.start(*more).ended(TIMEOUT_S)


def wait_until(true: Callable[[], bool], running: Warm) -> None:
    """Look every few milliseconds; fail where the process ends before."""
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert running.running, running.ended(1).stderr[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kept_step(run: Path) -> int:
    """The optimiser step in last.ckpt; -1 where there is none."""
    path = run / "last.ckpt"
    if not path.is_file():
        return -1
    return int(torch.load(path, weights_only=True, mmap=True)["global_step"])


def interrupt(running: Warm, signum: int) -> "CompletedProcess[str]":
    """Send the signal to the process and those that it has started, as a terminal and a cluster
    do, and wait for its end.
    """
    os.killpg(running.pid, signum)
    return running.ended(TIMEOUT_S)


def kill(running: Warm) -> None:
    """As the out-of-memory killer."""
    assert interrupt(running, signal.SIGKILL).returncode == -signal.SIGKILL


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves, by name, but for what the clock says."""
    found: dict[str, Any] = {}
    for name in ("last.ckpt", "best.ckpt"):
        content = torch.load(run / name, weights_only=True)
        content["callbacks"] = {
            key: state
            for key, state in content["callbacks"].items()
            if not key.startswith(("ModelCheckpoint", "Throughput"))
        }
        for part in ("loops", "loggers", "codetr"):
            content.pop(part)
        found |= {f"{name}{key}": value for key, value in _flat(content)}
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found["metrics.csv"] = [
        {k: v for k, v in row.items() if not k.startswith(CLOCK)} for row in rows
    ]
    return found


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [x for key, part in value.items() for x in _flat(part, f"{prefix}/{key}")]
    if isinstance(value, list | tuple):
        return [x for i, part in enumerate(value) for x in _flat(part, f"{prefix}/{i}")]
    return [(prefix, value)]


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What is not equal to the bit."""
    names = found.keys() | expected.keys()
    return sorted(name for name in names if not _same(found.get(name), expected.get(name)))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)
