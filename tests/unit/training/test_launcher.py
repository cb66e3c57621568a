import json
import sys
from pathlib import Path

import pytest

from codetr.training.launcher import (
    JobResult,
    job_command,
    run_job,
    table_rows,
    with_differences,
    write_report,
)


def result(number: int, *overrides: str, ap: float | None) -> JobResult:
    metrics = None if ap is None else {"AP": ap, "AP50": 0.5, "step_time_s": None}
    return JobResult(
        number=number, overrides=overrides, exit_code=0 if ap is not None else 2, metrics=metrics
    )


RESULTS = [
    result(0, "aux_heads=[]", "seed=1", ap=0.25),
    result(1, "aux_heads=[atss]", "seed=1", ap=None),
]


def test_job_is_a_plain_command_in_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "aux_heads=[],[atss]"])
    command = job_command(["aux_heads=[atss]", "name=k"], 1, tmp_path / "k", "train")
    assert command[0] == sys.executable
    assert "-m" not in command
    assert command[2:] == [
        "--config-name=train",
        "aux_heads=[atss]",
        "name=k_1",
        f"hydra.run.dir='{tmp_path / 'k' / '1'}'",
    ]


def test_table_shows_what_differs_and_what_failed() -> None:
    heading, *rows = table_rows(with_differences(RESULTS))
    assert heading == ["job", "overrides", "AP", "AP50", "s / step", "memory GiB"]
    assert rows == [
        ["0", "aux_heads=[]", "0.250", "0.500", "-", "-"],
        ["1", "aux_heads=[atss]", "failed", "-", "-", "-"],
    ]


def test_report_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(RESULTS, tmp_path)
    assert "aux_heads=[atss]" in capsys.readouterr().out
    assert "| aux_heads=[atss] seed=1 | failed |" in (tmp_path / "sweep.md").read_text()
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 3


def test_job_gets_its_environment_and_its_status_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "seen.json"
    code = (
        "import json, os, sys; "
        f"json.dump(os.environ['WANDB_RUN_GROUP'], open({str(target)!r}, 'w')); sys.exit(3)"
    )
    assert run_job([sys.executable, "-c", code], {"WANDB_RUN_GROUP": "k"}) == 3
    assert json.loads(target.read_text()) == "k"
