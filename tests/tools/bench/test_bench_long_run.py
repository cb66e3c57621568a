"""The memory and the open files of a long run."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from codetr.errors import UserError
from codetr.training.stopping import Stopped
from tools.bench import long_run
from tools.bench.long_run import Look, Options, last_step, look, slope, table


def test_growth_of_the_last_half_is_told() -> None:
    looks = [Look(step=s, mib=500 + s / 100, files=20 + s // 1000, threads=4) for s in range(5000)]
    made = table(looks, Options(steps=20_000))
    assert made.notes[0].startswith("4999 of 20000 steps")
    assert made.notes[1] == (
        "steps 2500 to 4999, 2500 looks: 525.0 to 550.0 MiB, +10.00 MiB in 1,000 steps by least "
        "squares, 22 to 24 descriptors, 4 threads"
    )
    assert next(iter(made.rows)) == "step 0"
    assert list(made.rows)[-1] == "step 4999"


@pytest.mark.parametrize(("mib", "expected"), [((5, 5, 5), 0), ((5, 7, 6), 0.5), ((5,), 0)])
def test_the_slope_is_of_least_squares(mib: tuple[float, ...], expected: float) -> None:
    looks = [Look(step=1000 * i, mib=m, files=4, threads=1) for i, m in enumerate(mib)]
    assert slope(looks) == pytest.approx(expected)


def test_a_process_is_looked_at() -> None:
    before = look(os.getpid(), 3)
    with Path(__file__).open():
        now = look(os.getpid(), 3)
    assert before is not None
    assert now is not None
    assert now.files == before.files + 1
    assert now.mib > 10


def test_a_process_that_has_ended_is_not_looked_at() -> None:
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # its number stays until it is waited
    assert look(ended.pid, 3) is None
    ended.wait()


def test_the_last_step_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    assert last_step(log) == -1
    log.write_text("step,loss\n")
    assert last_step(log) == -1
    log.write_text("step,loss\n10,1.5\n20,\n")
    assert last_step(log) == 20


def test_training_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_run, "TINY", ("no.such=1",))
    with pytest.raises(UserError, match="training ended with status 2: error: Key"):
        long_run.watch(tmp_path, Options(steps=100, every=0.1))


@pytest.mark.parametrize("steps", [0, 150])
def test_steps_are_whole_epochs(steps: int) -> None:
    with pytest.raises(UserError, match="multiple of 100"):
        Options(steps=steps).check()


def test_training_ends_with_a_benchmark_that_is_terminated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(long_run.subprocess, "Popen", Noted)
    monkeypatch.setattr(long_run.time, "sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        long_run.watch(tmp_path, Options(steps=long_run.IMAGES))
    (training,) = started
    assert training.returncode == -signal.SIGTERM
