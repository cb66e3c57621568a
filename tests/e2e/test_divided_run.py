"""A run whose weights are divided among two processes is one whose weights are not."""

import csv
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from commands import Command, arguments, environment
from warm import TIMEOUT_S

COMPARED = ("loss", "train/gradient_norm", "lr/rest", "val/AP")
CPUS = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32")


def rows(run: Path) -> list[list[float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [[float(row[n] or -2) for n in COMPARED] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_stopped_and_resumed_it_equals_one_of_ddp(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    """Losses, norms, weights, their average and the optimiser's state. Either goes on with the
    other's checkpoint, and one process evaluates what two have trained.
    """
    options = (*small, *CPUS, "schedule.epochs=3", "callbacks=ema", "data.num_workers=0")
    options = (*options, "data.source.num_val=3", "data.eval_batch_size=1")  # not equally many
    options = (*options, "checkpointing.last.seconds_apart=0")
    done = command("train.py", *options, "trainer=ddp", "name=whole")
    assert done.returncode == 0, done.stderr[-3000:]

    line = arguments("train.py", *options, "trainer=fsdp", "name=cut")
    running = subprocess.Popen(line, cwd=tmp_path, env=environment())
    run, whole = tmp_path / "runs/cut", tmp_path / "runs/whole"
    deadline = time.monotonic() + TIMEOUT_S
    while not (run / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 143
    shutil.copytree(run, tmp_path / "runs/exchanged")
    for name, strategy in (("cut", "fsdp"), ("exchanged", "ddp")):
        told = (*options, f"name={name}", f"trainer={strategy}", "ckpt_path=last")
        done = command("train.py", *told)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "resuming from" in done.stdout
        found = tmp_path / "runs" / name
        torch.testing.assert_close(rows(found), rows(whole), rtol=1e-4, atol=1e-4)
        _assert_equal(found / "last.ckpt", whole / "last.ckpt")

    checkpoint = f"checkpoint={run / 'best.ckpt'}"
    done = command("eval.py", checkpoint, "trainer=cpu", "name=eval", "logger=[csv]")
    assert done.returncode == 0, done.stderr[-3000:]
    again = json.loads((tmp_path / "runs/eval/metrics.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    assert again["AP"] == pytest.approx(metrics["AP"], abs=1e-6)


def _assert_equal(found: Path, expected: Path) -> None:
    one, two = (torch.load(path, weights_only=True) for path in (found, expected))
    assert one["global_step"] == two["global_step"]
    for name in ("state_dict", "current_model_state"):
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)
    (state,), (other,) = one["optimizer_states"], two["optimizer_states"]
    assert state["param_groups"] == other["param_groups"]
    torch.testing.assert_close(state["state"], other["state"], rtol=1e-3, atol=1e-6)
