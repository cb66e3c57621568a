"""What a command answers before Hydra reads its words."""

import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from codetr.commands.start import start
from codetr.conf_folder import about, conf_folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--experiment", "x"], "--experiment: settings have no dashes: write experiment=VALUE"),
        (["--num-classes=3"], "write num_classes=3; --help"),
        (["--checkpoint=a b.ckpt"], "--checkpoint=a b.ckpt: settings have no dashes"),
        (["-x"], "-x: settings have no dashes: write x=VALUE"),
        (["size=[8,8]", "-m"], "--multirun: info does not support sweeps"),
        (["--multirun", "size=[8,8]"], "--multirun: info does not support sweeps"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: is not a folder: give a"),
        (["--cfg", "job", "--info", "all"], "--cfg --info: exclude each other: give one"),
        (["--resolve"], "--resolve: has no effect without --cfg: add --cfg job"),
        (["--package", "model"], "--package: has no effect without --cfg: add --cfg job"),
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
    told = capsys.readouterr().out
    assert "model" in told
    assert told.startswith(about("info") if words == ["--help"] else "checkpoint:")


def test_help_names_each_console_command() -> None:
    """A page of conf/ begins with its command, in an environment without a clone."""
    pages = sorted(path.stem for path in conf_folder().glob("*.yaml"))
    named = {page: about(page).removeprefix("Settings of `").split("`")[0] for page in pages}
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert sorted(told.split()[0] for told in named.values()) == sorted(project["scripts"])
    assert about("of-my-own") == "of-my-own"


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


def test_an_interrupted_command_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(cfg: object, given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["info.py"])
    with pytest.raises(SystemExit) as caught:
        start("info", interrupted, sweeps=False)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "stopped by SIGINT\n"
