"""``codetr.train`` does what the command does."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import SMALL

import codetr
from codetr.errors import UserError
from codetr.training import wandb_logger


def test_result_names_what_was_written(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = codetr.train(
        [*SMALL, "debug=fast", "data.num_workers=0", f"data.root={data_root}", "name=mine"]
    )
    assert result.folder == Path("runs/mine")
    assert 0 <= result.metrics["AP"] <= 1
    assert result.best.is_file()
    assert len(codetr.load(result.model, device="cpu").record.classes) > 0


def test_several_devices_need_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"trainer\.devices=2 .*codetr-train"):
        codetr.train(["trainer=ddp", "trainer.devices=2"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data=custom"], r"data\.root is not set: give data\.root=FOLDER"),
        (["data=custom", "data.root=nowhere"], r"nowhere does not exist"),
        (["data=costum"], r"data=costum.* custom"),
        (["trainer=cpu", "trainer.max_time=soon"], r"trainer\.max_time"),
    ],
)
def test_errors_are_those_of_the_command(
    settings: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        codetr.train(settings)


def test_a_refused_command_starts_no_wandb_run(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started: list[object] = []
    monkeypatch.setattr(wandb_logger, "start_run", lambda *_: started.append(_))
    settings = [*SMALL, "debug=fast", "data.num_workers=0", f"data.root={data_root}", "name=mine"]
    codetr.train([*settings, "logger=[wandb]"])
    assert len(started) == 1
    with pytest.raises(UserError, match=r"last\.ckpt: .*give the whole .* the same ckpt_path"):
        codetr.train([*settings, "logger=[wandb]", "model.dim=32", "ckpt_path=last"])
    assert len(started) == 1
