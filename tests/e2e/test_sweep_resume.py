"""A sweep that is killed in the middle goes on when the same command is given again."""

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from commands import Command, arguments, environment
from warm import TIMEOUT_S

ONE_STEP = ("trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "schedule.epochs=1")


def finished(job: Path) -> bool:
    state = job / "job.json"
    return state.is_file() and json.loads(state.read_text())["finished"] is True


def numbers(run: Path) -> list[dict[str, str]]:
    """All that was logged, but for speed and memory, and the result."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [
            {key: value for key, value in row.items() if not key.startswith("perf/")}
            for row in csv.DictReader(file)
        ]
    assert any(float(row["loss"] or 0) > 0 for row in rows)
    return [*rows, {"AP": str(json.loads((run / "metrics.json").read_text())["AP"])}]


def test_killed_sweep_goes_on_and_has_a_page(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    told = ("-m", *small, *ONE_STEP, "callbacks=default", "aux_heads=[],[atss]")
    process = subprocess.Popen(
        arguments("train.py", *told),
        cwd=tmp_path,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not any(map(finished, tmp_path.glob("runs/sweeps/*/0"))):
            assert process.poll() is None, "the sweep ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (folder,) = (tmp_path / "runs/sweeps").iterdir()
    assert not finished(folder / "1")
    before = (folder / "0/metrics.json").stat().st_mtime_ns

    done = command("train.py", *told)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "runs/sweeps").iterdir()) == [folder], "it found its folder again"
    assert (folder / "0/metrics.json").stat().st_mtime_ns == before, "job 0 was not repeated"
    assert finished(folder / "1")
    with (folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["overrides"] for row in rows] == ["aux_heads=[]", "aux_heads=[atss]"]
    assert all(0 <= float(row["AP"]) <= 1 for row in rows)

    alone = command("train.py", *told[1:-1], "aux_heads=[atss]", "name=alone")
    assert alone.returncode == 0, alone.stderr[-2000:]
    assert numbers(folder / "1") == numbers(tmp_path / "runs/alone"), "as if it had not been killed"

    done = command("scripts/sweep_report.py", str(folder))
    assert done.returncode == 0, done.stderr
    page = (folder / "report.md").read_text()
    assert "| K = 0 (none) | 1 |" in page
    assert "| K = 1 (atss) | 1 |" in page
    assert "NOT FINISHED" not in page
    done = command("scripts/sweep_report.py", str(folder / "0/pictures"))
    assert done.returncode == 2
    assert "holds no run" in done.stderr
