"""A long run in small: the memory and the open files of ``train.py`` over thousands of steps.

The smallest of our models trains on images of 64 pixels and validates every hundred steps, in a
process of its own, which is looked at from outside. What leaks by step, validation or checkpoint
shows as a slope over the last half of the run. ``--repeats`` does not count here.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codetr.errors import UserError
from codetr.training.stopping import StopSignals
from tools.bench.options import Common, option
from tools.bench.report import Cell, Table

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
IMAGES = 100
TINY = (
    f"data.source.num_train={IMAGES}",
    "data.source.num_val=4",
    "data.source.size=64",
    "data.batch_size=1",
    "logger=[csv]",
    "trainer=cpu",
    "trainer.log_every_n_steps=20",
    "augmentation=none",
    "model=yolos_tiny",
    "model.backbone.depth=1",
    "model.dim=32",
    "model.heads=4",
    "model.hidden=32",
    "model.num_queries=10",
    "scheme=[one_to_one]",
    "aux_heads=[]",
    "callbacks.preview=null",
    "name=run",
)
SHOWN = 12
"""Rows of the table."""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """How long it runs."""

    steps: int = option(20_000, "optimiser steps, a multiple of 100")
    minutes: float = option(25.0, "after which the run is stopped, however far it came")
    every: float = option(5.0, "seconds between two looks")

    def check(self) -> None:
        """See ``Common``."""
        super().check()
        if self.steps < IMAGES or self.steps % IMAGES:
            raise UserError(f"--steps {self.steps}: give a multiple of {IMAGES}")
        if not Path("/proc/self/status").exists():
            raise UserError("bench long_run looks into /proc: run it on Linux")


@dataclass(frozen=True, kw_only=True)
class Look:
    """At a process: memory that it has (MiB), open descriptors and threads, at an optimiser step of
    its log.
    """

    step: int
    mib: float
    files: int
    threads: int


def run(options: Options) -> tuple[Table, ...]:
    """MiB, descriptors and threads by step."""
    with tempfile.TemporaryDirectory() as folder:
        looks = watch(Path(folder), options)
    return (table(looks, options),)


def watch(folder: Path, options: Options) -> list[Look]:
    """Train in ``folder`` and look. Raises UserError where training fails."""
    command = [sys.executable, str(TRAIN), *TINY, f"schedule.epochs={options.steps // IMAGES}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads or 1)}
    looks: list[Look] = []
    deadline = time.monotonic() + 60 * options.minutes
    with StopSignals(), (folder / "output.txt").open("w+") as output:
        training = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while training.poll() is None and time.monotonic() < deadline:
                time.sleep(options.every)
                step = last_step(folder / "runs/run/metrics.csv")
                seen = look(training.pid, step) if step > 0 else None
                if seen is not None:
                    looks.append(seen)
            stopped = training.poll() is None
        finally:  # training does not outlive this process's Ctrl-C or SIGTERM
            training.terminate()
            status = training.wait()
        output.seek(0)
        if (status != 0 and not stopped) or not looks:
            lines = output.read().strip().splitlines() or ["nothing was written"]
            raise UserError(f"training ended with status {status}: {lines[-1]}")
    return looks


def last_step(log: Path) -> int:
    """The step of the last row of metrics.csv; -1 where there is none."""
    try:
        with log.open(newline="") as file:
            steps = [int(float(row["step"])) for row in csv.DictReader(file) if row["step"]]
    except (OSError, KeyError, ValueError):
        return -1
    return steps[-1] if steps else -1


def look(pid: int, step: int) -> Look | None:
    """At the process of that number; None where it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    if "VmRSS" not in status:
        return None
    return Look(
        step=step,
        mib=int(status["VmRSS"].split()[0]) / 1024,
        files=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"]),
    )


def table(looks: Sequence[Look], options: Options) -> Table:
    """Some of the looks, and the growth over the last half of the run."""
    last = looks[-1]
    half = [one for one in looks if one.step >= last.step / 2]
    chosen = [looks[round(i * (len(looks) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
    memory = np.array([one.mib for one in half])
    notes = (
        f"{last.step} of {options.steps} steps, a validation every {IMAGES}",
        f"steps {half[0].step} to {last.step}, {len(half)} looks: {memory.min():.1f} to "
        f"{memory.max():.1f} MiB, {slope(half):+.2f} MiB in 1,000 steps by least squares, "
        f"{_span([one.files for one in half])} descriptors, "
        f"{_span([one.threads for one in half])} threads",
    )
    rows: dict[str, tuple[Cell, ...]] = {
        f"step {one.step}": (one.mib, float(one.files), float(one.threads)) for one in chosen
    }
    return Table("A long run in small", ("MiB", "descriptors", "threads"), rows, notes)


def slope(looks: Sequence[Look]) -> float:
    """MiB in 1,000 steps: of the line with the least squared distance to the looks."""
    steps = np.array([one.step for one in looks]) / 1000
    away = steps - steps.mean()
    return float(away @ [one.mib for one in looks] / max(away @ away, 1e-12))


def _span(values: Sequence[int]) -> str:
    lowest, highest = min(values), max(values)
    return str(lowest) if lowest == highest else f"{lowest} to {highest}"
