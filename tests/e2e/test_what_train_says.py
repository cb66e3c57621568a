"""What commands say about a run that is not what its user may think."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from commands import Command, write_coco

import codetr
from codetr.errors import UserError
from codetr.training.small_machine import has_gpu

without_gpu = pytest.mark.skipif(has_gpu(), reason="a GPU takes the large recipe")
FINETUNE = ("experiment=finetune", "data=coco", "data.root=nowhere")
CHOICE = "no GPU is used: experiment=finetune_small instead of experiment=finetune"


@without_gpu
def test_the_small_recipe_is_chosen_and_said(command: Command) -> None:
    done = command("train.py", *FINETUNE)
    assert CHOICE in done.stdout
    assert "nowhere" in done.stderr.splitlines()[-1]
    done = command("train.py", *FINETUNE, "model=co_dino_tiny")
    assert "finetune_small" not in done.stdout + done.stderr


@without_gpu
def test_python_chooses_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="nowhere"):
        codetr.train(FINETUNE)
    assert CHOICE in caplog.text


def test_resuming_says_what_is_another_run(command: Command, small: tuple[str, ...]) -> None:
    options = (*small, "name=a", "data.num_workers=0", "checkpointing.best=null")
    done = command("train.py", *options, "schedule.epochs=1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the resumed run had other settings" not in done.stdout + done.stderr
    done = command("train.py", *options, "schedule.epochs=2", "ckpt_path=last", "seed=7")
    assert done.returncode == 0, done.stderr[-2000:]
    (said,) = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if "the resumed run had other settings" in line
    ]
    assert "schedule.epochs: 1, now 2" in said
    assert "seed: 0, now 7" in said
    assert "classes" not in said


def test_a_run_is_not_resumed_as_another_model(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    options = (*small, "name=a", "schedule.epochs=1", "checkpointing.best=null")
    done = command("train.py", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    config = (tmp_path / "runs/a/config.yaml").read_bytes()
    done = command("train.py", *options, "aux_heads=[]", "ckpt_path=last")
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "runs/a/last.ckpt: cannot be resumed with these settings" in line
    assert "give the whole command that started its run again, with the same ckpt_path" in line
    assert (tmp_path / "runs/a/config.yaml").read_bytes() == config


def test_a_folder_may_be_called_as_a_number(command: Command, tmp_path: Path) -> None:
    write_coco(tmp_path / "2024", {"a.png": [[1.0, 1.0, 20.0, 20.0]]})
    done = command("scripts/inspect_data.py", "data=coco", "data.root=2024")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "inspect_2024.html").is_file()
