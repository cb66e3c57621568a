"""What a command answers before Hydra reads its words."""

import sys
from contextlib import suppress
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from codetr.commands.start import start


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--experiment", "x"], "--experiment: settings have no dashes: write experiment=VALUE"),
        (["--num-classes=3"], "write num_classes=3; --help"),
        (["-x"], "-x: settings have no dashes: write x=VALUE"),
        (["size=[8,8]", "-m"], "--multirun: info makes no sweeps"),
        (["--multirun", "size=[8,8]"], "--multirun: info makes no sweeps"),
        (["--experimental-rerun", "x"], "--experimental-rerun: reads a pickle, which may run code"),
    ],
)
def test_flags_that_are_none_are_one_line(
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """``--experiment`` would be short for ``--experimental-rerun``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["info.py", *words])
    with pytest.raises(SystemExit) as caught:
        start("info", lambda cfg, given: None, sweeps=False)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["-c", "job"]])
def test_hydras_own_flags_are_taken(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["info.py", *words])
    with suppress(SystemExit):
        start("info", lambda cfg, given: None, sweeps=False)
    assert "model" in capsys.readouterr().out


def test_flags_may_stand_between_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Lightning adds settings to the end of a command, after its flags."""
    words = [
        "size=[8,8]",
        "--config-dir",
        str(tmp_path),
        "num_classes=2",
        "--cfg",
        "job",
        "trust=true",
    ]
    monkeypatch.setattr(sys, "argv", ["info.py", *words])
    start("info", lambda cfg, given: None, sweeps=False)
    cfg = OmegaConf.create(capsys.readouterr().out)
    assert (list(cfg.size), cfg.num_classes, cfg.trust) == ([8, 8], 2, True)
