"""``codetr.train`` does what the command does."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import SMALL

import codetr
from codetr.errors import UserError


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
