import argparse
import dataclasses
import datetime
import gc
import os
import runpy
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Literal

import pytest
import torch
from rich.console import Console

from codetr.errors import UserError
from tools.bench.measure import (
    WARM_UP_SECONDS,
    attempt,
    in_turns,
    medians,
    peak_memory,
    ratio,
)
from tools.bench.options import Common, add_arguments, from_arguments, option
from tools.bench.report import Table, hardware, make_report, read_json, render, write_json

CPU = torch.device("cpu")


def test_in_turns_alternates_after_one_turn_to_warm_up() -> None:
    order: list[str] = []
    paths = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = in_turns(paths, 3)
    assert order == list("ab") * 4
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert min(times["a"]) > 0


class PretendedGpu:
    """``torch.cuda`` with a stream that runs when it is waited for, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.queued, self.waits = 0.0, 0.0, 0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.now + gpu.queued

            def elapsed_time(self, other: "Event") -> float:
                assert max(self.at, other.at) <= gpu.now, "it has not happened yet"
                return (other.at - self.at) * 1000

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def wait(self, device: torch.device) -> None:
        self.now, self.queued = self.now + self.queued, 0.0
        self.waits += 1

    def path(self, seconds: float, calls: list[str], name: str):
        def run() -> None:
            self.queued += seconds
            calls.append(name)

        return run


@pytest.mark.parametrize("once", [False, True])
def test_on_a_gpu_events_time_turns_of_many_short_runs(
    monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    gpu, calls = PretendedGpu(monkeypatch), []
    paths = {"short": gpu.path(0.003, calls, "short"), "long": gpu.path(0.5, calls, "long")}
    times = in_turns(paths, 3, torch.device("cuda"), once)
    assert times == {"short": pytest.approx([0.003] * 3), "long": pytest.approx([0.5] * 3)}
    warm = calls[: calls.index("long")]
    assert 0.003 * len(warm) == pytest.approx(WARM_UP_SECONDS, abs=0.005)
    turn = ["short"] * (1 if once else 7) + ["long"]
    assert calls[len(warm) :] == ["long"] * 2 + turn * 3


def test_what_fails_is_noted_and_not_raised() -> None:
    notes: list[str] = []
    assert attempt("theirs", lambda: 3, notes) == 3
    assert attempt("theirs", lambda: [][0], notes) is None
    assert notes == ["theirs failed: IndexError: list index out of range"]


def test_ratio_is_within_a_turn() -> None:
    times = {"ours": [1.0, 10.0, 3.0], "theirs": [2.0, 20.0, 2.0]}
    assert ratio(times, "ours", "theirs") == 0.5
    assert medians(times) == {"ours": 3.0, "theirs": 2.0}


def make_filling(mib: int):
    held = torch.ones(32 * 2**18)  # 32 MiB that stand before the run
    return lambda: torch.ones(mib * 2**18).sum() + held.sum()


def test_peak_memory_is_what_the_run_takes() -> None:
    assert 96 <= peak_memory(make_filling, 96) / 2**20 < 120


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_peak_memory_on_a_gpu_is_without_what_the_last_run_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Watched modules hang in cycles; collected during the run, they would be taken off it."""
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0 if left() is None else 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 7)
    gc.disable()
    try:
        left = weakref.ref(Cycle())
        assert left() is not None
        assert peak_memory(lambda: lambda: None, device=torch.device("cuda")) == 7
    finally:
        gc.enable()


def table() -> Table:
    return Table(
        "Time",
        ("ms", "what"),
        {"ours": (1.2345, "x"), "theirs": (1200.4, "")},
        ("a [bench] note",),
    )


def test_table_renders(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=80).print(render(table()))
    text = capsys.readouterr().out
    for part in ("Time", "ms", "ours", "1.23", "1200", "a [bench] note"):
        assert part in text
    with pytest.raises(ValueError, match="'b' has 1 cells for 2"):
        Table("t", ("x", "y"), {"b": (1.0,)})


def test_json_round_trips_and_names_machine_commit_and_date(tmp_path: Path) -> None:
    report = make_report("data", CPU, {"count": 3}, (table(),))
    write_json(report, tmp_path / "r.json")
    assert read_json(tmp_path / "r.json") == report
    assert report.date == datetime.date.today().isoformat()
    assert "logical cores" in report.hardware
    assert report.torch == torch.__version__
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    assert report.commit == "unknown" or run.returncode or run.stdout.strip() in report.commit


def test_cores_are_counted_where_linux_names_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "processor : 0\nBogoMIPS : 50.00\n")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    name, cores = hardware(CPU).rsplit(", ", 1)
    assert name
    assert cores == "6 logical cores"


def test_files_that_are_no_report_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(UserError, match=r"x\.json is not a report"):
        read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="give --json another place"):
        write_json(make_report("op", CPU, {}, ()), tmp_path / "absent" / "r.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(Common):
    sizes: tuple[int, ...] = option((1, 2), "several")
    kind: Literal["a", "b"] = option("a", "one of two")
    folder: str | None = option(None, "a folder")
    memory: bool = option(True, "a switch")


def test_options_are_arguments() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Example)
    assert from_arguments(Example, parser.parse_args([])) == Example()
    given = ["--sizes", "3", "4", "--kind=b", "--folder=x", "--no-memory"]
    assert from_arguments(
        Example, parser.parse_args([*given, "--repeats=2", "--threads=1"])
    ) == Example(sizes=(3, 4), kind="b", folder="x", memory=False, repeats=2, threads=1)
    with pytest.raises(SystemExit):
        parser.parse_args(["--kind", "c"])


def test_command_names_the_benchmarks(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).resolve().parents[3] / "scripts" / "bench.py"
    for given in (["--help"], ["data", "--help"]):
        monkeypatch.setattr(sys, "argv", [str(script), *given])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(script), run_name="__main__")
        assert end.value.code == 0
    text = capsys.readouterr().out
    assert "scripts/bench.py NAME" in text
    assert "--images" in text


WRONG = {
    ("data", "--repeats", "0"): "--repeats 0: give 1 or more",
    ("eval", "--threads", "0"): "--threads 0: give 1 or more",
    ("op", "--device", "cuda"): "--device cuda: PyTorch finds no CUDA device here",
    ("data", "--device", "cuda"): "unrecognized arguments: --device cuda",
}


@pytest.mark.parametrize("given", WRONG, ids=" ".join)
def test_what_cannot_be_measured_is_one_line(
    given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script = Path(__file__).resolve().parents[3] / "scripts" / "bench.py"
    monkeypatch.setattr(sys, "argv", [str(script), *given])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 2
    assert WRONG[given] in capsys.readouterr().err
