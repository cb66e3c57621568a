"""The submitit runner: with submitit's local executor where it is installed, else what it says."""

import os
import sys
from pathlib import Path

import pytest

from codetr.errors import UserError
from codetr.training.sweeps.cluster import SubmititRunner
from codetr.training.sweeps.process import Start


def starts(folder: Path) -> list[Start]:
    code = (
        "import os, sys; from pathlib import Path\n"
        "Path('{0}/name').write_text(os.environ['SLURM_JOB_NAME']); sys.exit({1})"
    )
    return [
        Start(
            command=(sys.executable, "-c", code.format(folder / str(status), status)),
            folder=folder / str(status),
            env=dict(os.environ),
        )
        for status in (0, 3)
    ]


def test_local_executor_runs_jobs_and_reports_their_status(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra `cluster` (submitit) is not installed")
    codes: dict[int, int] = {}
    runner = SubmititRunner("local", {"timeout_min": 5}, tmp_path / "submitit")
    runner(starts(tmp_path), codes.__setitem__)
    assert codes == {0: 0, 1: 3}
    assert (tmp_path / "0/name").read_text() == "interactive", "Lightning starts its own processes"


def test_refused_parameters_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra `cluster` (submitit) is not installed")
    runner = SubmititRunner("local", {"nonsense": 1}, tmp_path / "submitit")
    with pytest.raises(UserError, match="nonsense") as caught:
        runner(starts(tmp_path), lambda index, code: None)
    assert "\n" not in str(caught.value)


def test_without_submitit_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    runner = SubmititRunner("slurm", {}, tmp_path)
    with pytest.raises(
        UserError, match=r"submitit_slurm needs submitit: install codetr\[cluster\]"
    ):
        runner(starts(tmp_path), lambda index, code: None)
