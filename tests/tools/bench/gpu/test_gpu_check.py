"""``scripts/gpu_check.py`` as far as a CPU goes, and what it says where something is wrong."""

import runpy
import sys
import traceback
import warnings
from pathlib import Path

import pytest
import torch

from tools.bench.gpu import step
from tools.bench.gpu.facts import Facts, run_parts, verdict
from tools.bench.report import read_json

SCRIPT = Path(__file__).resolve().parents[4] / "scripts" / "gpu_check.py"
CPU = torch.device("cpu")
PARTS = ["env", "kernel", "tune", "sdpa", "nms", "syncs", "launches", "train"]


def gpu_check(monkeypatch: pytest.MonkeyPatch, *given: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *given])
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what it sets would stay
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert isinstance(end.value.code, int)
    return end.value.code


def test_goes_through_on_the_cpu_and_says_what_it_skips(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "facts.json"
    assert gpu_check(monkeypatch, "--device", "cpu", "--json", str(path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("===")] == PARTS
    assert not [line for line in lines if line.startswith("BAD")]
    report = read_json(path)
    told = {table.title.split()[0]: table.rows for table in report.tables}
    assert list(told) == PARTS
    for name in ("tune", "sdpa", "syncs", "launches"):
        assert {row[0] for row in told[name].values()} == {"skip"}
    assert {row[0] for row in told["kernel"].values()} == {"fact", "ok", "skip"}
    assert told["train"]["losses of three steps in bf16"][0] == "ok"
    assert sum(row[0] == "ok" for row in told["nms"].values()) == 4
    skipped = sum(row[0] == "skip" for rows in told.values() for row in rows.values())
    assert lines[-1].endswith(f"0 wrong, {skipped} skipped")
    assert lines[-1].startswith("pass: ")
    assert report.versions["torch"] == told["env"]["torch"][1]
    assert report.commit
    assert report.hardware == told["env"]["device"][1]


def test_unknown_parts_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_check(monkeypatch, "env", "kernels") == 2
    assert "kernels: no such part: choose from env, kernel" in capsys.readouterr().err


def test_what_is_wrong_and_what_fails_does_not_end_the_rest() -> None:
    def wrong(facts: Facts) -> None:
        facts.check("sum", False, "1.0 off")
        facts.tell("time", "3 ms")

    def failing(facts: Facts) -> None:
        facts.check("first", True)
        step._model(facts, "fp32", "trainer.channels_last=perhaps")

    lines: list[str] = []
    tables = run_parts({"a": wrong, "b": failing, "c": lambda facts: None}, CPU, lines.append)
    assert lines[1:3] == ["BAD  sum: 1.0 off", "fact time: 3 ms"]
    assert lines[4] == "ok   first"
    assert lines[5].startswith("BAD  b goes through: UserError: trainer.channels_last=perhaps")
    assert lines[5].endswith("acceleration.py:" + lines[5].rsplit(":", 1)[1])
    assert lines[6] == "=== c on cpu"
    assert verdict(tables) == (False, "fail: 1 right, 2 wrong, 0 skipped")
    assert verdict(tables[2:]) == (True, "pass: 0 right, 0 wrong, 0 skipped")


def test_waits_are_found_by_file_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch warns where it waits; here a function of ours stands for one that waits."""
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    path = "/somewhere/codetr/supervision/assigners/hungarian.py"
    frame = traceback.FrameSummary(path, 7, "cost")
    monkeypatch.setattr(traceback, "extract_stack", lambda: [frame])

    def run() -> None:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    assert step._waits(run) == {"hungarian.py:7": 3}
    assert modes == ["warn", "default"]
