"""Training, evaluating, resuming, over one process and two."""

import csv
import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import Command, arguments, environment, write_coco
from warm import TIMEOUT_S

from codetr.checkpoints.files import read_detector_file
from codetr.evaluation.diagnosis import PICTURES

COMPARED = ("loss", "train/gradient_norm", "lr/rest", "val/AP")


def curve(run: Path, name: str) -> list[tuple[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [(row["step"], row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_trained_model_evaluates_to_the_same_numbers(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    done = command("train.py", *small, "debug=fast", "name=a", "callbacks=ema")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/a"
    for name in ("best.ckpt", "last.ckpt", "model.safetensors", "config.yaml", "curves.png"):
        assert (run / name).is_file(), name
    assert {p.name for p in (run / "pictures").iterdir()} == {"training.png", "validation_001.png"}
    assert "effective batch 2" in done.stdout
    metrics = json.loads((run / "metrics.json").read_text())

    checkpoint = f"checkpoint={run / 'model.safetensors'}"
    # A process of its own: warm ones share the folder in which W&B writes tables.
    line = arguments("eval.py", checkpoint, "trainer=cpu", "name=eval", "logger=wandb")
    done = subprocess.run(
        line, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Average Precision" in done.stdout
    again = json.loads((tmp_path / "runs/eval/metrics.json").read_text())
    assert again["AP"] == pytest.approx(metrics["AP"], abs=1e-6)
    assert set(again["per_class"]) == set(
        read_detector_file(run / "best.ckpt").record.classes.names
    )
    assert (tmp_path / "runs/eval/predictions.json").is_file()
    assert "at threshold=" in done.stdout
    pictures = {path.name for path in (tmp_path / "runs/eval").glob("*.png")}
    assert pictures == {"panel.png", *PICTURES}
    assert "W&B failed" not in done.stdout
    (logged,) = (tmp_path / "runs/eval/wandb").glob("offline-run-*/files/media")
    assert len(list((logged / "images/pictures").glob("*.png"))) == len(pictures)
    tables = {re.sub(r"_\d+_.*", "", path.name) for path in (logged / "table/eval").iterdir()}
    assert tables == {"per_class", "errors"}


@pytest.mark.slow
def test_killed_and_resumed_run_equals_the_uninterrupted_one(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    options = (*small, "schedule.epochs=3", "callbacks=ema")
    done = command("train.py", *options, "name=whole")
    assert done.returncode == 0, done.stderr

    killed = subprocess.Popen(
        arguments("train.py", *options, "name=cut"), cwd=tmp_path, env=environment()
    )
    run = tmp_path / "runs/cut"
    deadline = time.monotonic() + TIMEOUT_S
    while not (run / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)  # written at the end of the first epoch
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() != 0
    done = command("train.py", *options, "name=cut", "ckpt_path=last")
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    for name in COMPARED:
        assert curve(run, name) == curve(tmp_path / "runs/whole", name), name


def test_two_ranks_of_which_one_has_no_boxes(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    boxes = [[8, 8, 20, 24], [30, 12, 28, 30]]
    root = tmp_path / "coco (1)"  # to be quoted, by either process, for Hydra's grammar
    write_coco(root, {"full.png": boxes, "empty.png": []})
    done = command(
        "train.py",
        *[o for o in small if not o.startswith("data.")],
        "data=coco",
        f"data.root={root}",
        "--config-dir",  # a flag between settings, to which Lightning adds some
        str(tmp_path),
        "data.batch_size=1",
        "data.num_workers=0",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.precision=32",
        "trainer.effective_batch=2",
        "schedule.epochs=3",
        "name=ddp",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "effective batch 2 (1 images x 2 devices x 1 accumulated)" in done.stdout
    run = tmp_path / "runs/ddp"
    assert len(curve(run, "loss")) == 3  # one batch per rank and epoch
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["AP"] <= 1
