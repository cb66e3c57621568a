"""Whole sweeps, with a script that trains nothing: failing, interrupted, repeated."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.utils import JobStatus
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from codetr.training import launcher
from codetr.training.launcher import sweep_name
from hydra_plugins.codetr_launchers import ProcessLauncher

SCRIPT = """
import json, os, re, sys
from pathlib import Path
told = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
folder = Path(told["hydra.run.dir"].strip("'"))
with (folder / "starts").open("a") as file:
    file.write(told.get("ckpt_path", "anew") + " " + os.environ["WANDB_RUN_GROUP"] + "\\n")
(folder / "last.ckpt").touch()
if (folder.parent / ("break_" + told["x"])).exists():
    sys.exit(2)
(folder / "metrics.json").write_text(json.dumps({"AP": float(told["x"]), "step_time_s": None}))
"""

Sweep = Callable[..., list]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run jobs x=1, x=2, ... of the sweep ``k``."""
    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py"), "-m", "x=1,2"])
    monkeypatch.setattr(launcher, "configure_log", lambda *_: None)

    def run(*values: str, parallel: int = 1) -> list:
        part = ProcessLauncher(parallel=parallel)
        hydra = {"sweep": {"dir": str(tmp_path / "k")}, "hydra_logging": None, "verbose": False}
        told = {"job": {"config_name": "train"}, "overrides": {"task": ["y=0", "x=1,2", "name=k"]}}
        config = OmegaConf.create({"hydra": {**hydra, **told}})
        part.setup(hydra_context=None, task_function=None, config=config)
        return list(part.launch([["y=0", f"x={value}", "name=k"] for value in values], 0))

    return run


def starts(tmp_path: Path, number: int) -> list[str]:
    return (tmp_path / "k" / str(number) / "starts").read_text().splitlines()


@pytest.mark.parametrize("parallel", [1, 2])
def test_failed_job_does_not_end_the_sweep_and_shows_in_its_result(
    sweep: Sweep, tmp_path: Path, parallel: int, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "k").mkdir()
    (tmp_path / "k/break_0.1").touch()
    failed, good = sweep("0.1", "0.2", parallel=parallel)
    assert (failed.status, good.status) == (JobStatus.FAILED, JobStatus.COMPLETED)
    assert good.return_value == 0.2
    with pytest.raises(CompactHydraException, match=r"job 0 \(x=0\.1\) failed with exit status 2"):
        _ = failed.return_value
    with (tmp_path / "k/sweep.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["job", "overrides", "AP", "AP50", "s / step", "memory GiB"],
        ["0", "x=0.1", "failed", "-", "-", "-"],
        ["1", "x=0.2", "0.200", "-", "-", "-"],
    ]
    assert "| 0 | x=0.1 | failed |" in (tmp_path / "k/sweep.md").read_text()
    assert "x=0.1" in capfd.readouterr().out


def test_same_command_again_runs_unfinished_jobs(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    (tmp_path / "k/break_0.2").touch()
    sweep("0.1", "0.2")
    (tmp_path / "k/break_0.2").unlink()
    first, second = sweep("0.1", "0.2")
    assert (first.return_value, second.return_value) == (0.1, 0.2)
    assert starts(tmp_path, 0) == ["anew k"], "a finished job is not repeated"
    assert starts(tmp_path, 1) == ["anew k", "last k"], "the other goes on from its checkpoint"
    sweep("0.1", "0.2", "0.3")
    assert len(starts(tmp_path, 1)) == 2
    assert starts(tmp_path, 2) == ["anew k"], "a sweep can be made longer"


def test_other_jobs_in_the_same_folder_are_refused(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("0.1")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        sweep("0.2")
    assert caught.value.code == 2
    (line,) = (s for s in capsys.readouterr().err.splitlines() if s.startswith("error: "))
    assert "holds another job (y=0 x=0.1): give the sweep another name=NAME" in line
    assert starts(tmp_path, 0) == ["anew k"]


def test_a_sweep_is_named_by_its_command() -> None:
    assert sweep_name(["sweep=k", "name=mine"]) == "mine"
    named = sweep_name(["sweep=k", "seed=0,1"])
    assert named == sweep_name(["sweep=k", "seed=0,1"])
    assert named.startswith("k-")
    assert named != sweep_name(["sweep=k", "seed=0,1,2"])
    assert sweep_name(["aux_heads=[],[atss]"]).startswith("sweep-")
    assert sweep_name(["sweep=k", "name='größe (1)'"]) == "größe (1)", "quotes are grammar"
