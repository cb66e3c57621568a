"""``scripts/tune.py`` suggests a setting that ``train.py`` takes, and keeps no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command


def test_learning_rate(command: Command, small: tuple[str, ...], tmp_path: Path) -> None:
    more = ("optimizer=finetune", "finder.steps=30", "data.num_workers=0", "name=a")
    more = (*more, "optimizer.scale_lr_with_batch=true", "trainer.effective_batch=4")
    done = command("scripts/tune.py", "tune=lr", *small, *more)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "runs/a/tune.json").read_text())
    suggestion = found["overrides"]["optimizer.lr"]
    assert f"optimizer.lr={suggestion:g}: " in done.stdout
    assert 1e-6 < suggestion < 0.1
    assert found["images_per_step"] == 4
    scaled = suggestion * 4 / 16  # what train.py makes of it
    assert found["groups"] == pytest.approx({"rest": scaled, "backbone": 0.2 * scaled})
    assert len(found["rates"]) == len(found["losses"]) <= 30
    assert (tmp_path / "runs/a/tune.png").read_bytes().startswith(b"\x89PNG")
    assert kept(tmp_path) == {"tune.json", "tune.png", "tune.log", ".hydra"}


def test_batch_size(command: Command, small: tuple[str, ...], tmp_path: Path) -> None:
    more = ("finder.largest_batch=3", "trainer.effective_batch=4", "callbacks=ema", "name=a")
    done = command("scripts/tune.py", "tune=batch_size", *small, *more, "data.num_workers=0")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "runs/a/tune.json").read_text())
    assert found["overrides"] == {"data.batch_size": 2}
    assert found["tried"] == {"1": True, "2": True, "3": True}
    assert "2 batches of 2 make trainer.effective_batch=4" in done.stdout
    assert kept(tmp_path) == {"tune.json", "tune.log", ".hydra"}


def kept(folder: Path) -> set[str]:
    """What is in the run's folder; nothing of a run lies elsewhere."""
    assert {path.name for path in folder.iterdir()} <= {"runs"}
    return {path.name for path in (folder / "runs/a").iterdir()}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tune=rate", "tune=rate: give lr or batch_size"),
        ("tune=batch_size", "finder.largest_batch=N"),
        ("finder.steps=2", "finder.steps=2: give a whole number from 10"),
        ("finder.lr_min=1", "finder.lr_min=1 is not below finder.lr_max=0.1"),
        ("finder.divergence=1", "finder.divergence=1: give a number above 1"),
        ("trainer.devices=2", "codetr-tune uses one device"),
        ("ckpt_path=last", "codetr-tune cannot resume a run"),
        ("optimizer.lr=0", "optimizer.lr=0: "),
    ],
)
def test_mistakes_are_one_line(
    command: Command, small: tuple[str, ...], override: str, said: str
) -> None:
    done = command("scripts/tune.py", *small, override)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line
