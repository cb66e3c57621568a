"""Each benchmark of models and of the operator through the command, at tiny sizes."""

import runpy
import sys
from pathlib import Path

import pytest
from tiny_bench import EXPERIMENT, PAIR, TINY

from tools.bench.report import Report, read_json

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench.py"
SMALL = ("--height", "64", "--width", "96", "--repeats", "1", "--no-memory")


def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> Report:
    """The report of ``scripts/bench.py ARGUMENTS``."""
    path = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, "--json", str(path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return read_json(path)


def test_op(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = bench(monkeypatch, tmp_path, "op", "--where", "small", "--repeats=1", "--no-memory")
    (table,) = report.tables
    assert list(table.rows) == ["ours", "grid_sample", "ours / grid_sample"]
    assert report.options["where"] == ["small"]


def test_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    given = ("step", *SMALL, "--profile", "--overrides", *TINY)
    summary, parts, kinds, _ = bench(monkeypatch, tmp_path, *given).tables
    assert list(summary.rows)[:2] == [EXPERIMENT, PAIR]
    assert list(summary.rows)[2].startswith("transformers ")
    assert float(summary.rows["ours / transformers"][0]) > 0
    assert any("auxiliary" in part for part in parts.rows)
    assert "assignment" in kinds.rows
    assert any(note.startswith("Our deformable attention: ") for note in summary.notes)


def test_launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    by_part, largest = bench(monkeypatch, tmp_path, "launches", *SMALL, "--overrides", *TINY).tables
    counted = [sum(float(row[i]) for row in by_part.rows.values()) for i in (0, 1)]
    assert [2 * float(n) for n in by_part.rows["all"]] == counted
    assert by_part.rows["backbone"][0] > 0
    assert float(largest.rows["_to_copy"][1]) > float(largest.rows["_to_copy"][0]), "bf16 casts"


def test_infer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = ("infer", *SMALL, "--no-baseline", "--experiment", PAIR, "--overrides", *TINY)
    (table,) = bench(monkeypatch, tmp_path, *given).tables
    ((seconds, images, peak),) = table.rows.values()
    assert images == pytest.approx(1 / float(seconds))
    assert peak == ""


def test_k(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    summary, parts = bench(monkeypatch, tmp_path, "aux_heads", *SMALL, "--one-by-one").tables
    names = ["K = 0", "K = 1", "K = 2", "K = 2, groups one by one"]
    assert list(summary.rows) == list(parts.columns) == names
    assert summary.rows["K = 0"][1] == 1.0
    heads = parts.rows["auxiliary heads"]
    assert heads[0] == ""
    assert min(float(heads[1]), float(heads[2])) > 0
    assert any("1.35" in note and "1.71" in note for note in summary.notes)
