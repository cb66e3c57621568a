"""``benchmarks/gpu.sh`` with a stand-in for Python that writes down what it is asked to run."""

import argparse
import importlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from codetr.checkpoints.experiment import compose_experiment, compose_train
from tools.bench.options import add_arguments, from_arguments

ROOT = Path(__file__).resolve().parents[4]
PARTS = ["env", "kernel", "tune", "sdpa", "nms", "syncs", "launches", "train"]
BLOCKS = ["right", "operator", "step", "large", "training"]
STAND_IN = f"""#!{sys.executable}
import os, sys
with open(os.environ["TOLD"], "a") as file:
    file.write("\\0".join(sys.argv[1:]) + "\\n")
print("measured", *sys.argv[1:3])
sys.exit("sdpa" in sys.argv or "name=gpu_bccd_k1" in sys.argv)
"""


def run(tmp_path: Path, *blocks: str, **more: str) -> tuple[str, int, list[list[str]]]:
    """What it prints, its exit status, and the commands that it ran."""
    program, told = tmp_path / "python", tmp_path / "told"
    program.write_text(STAND_IN)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    told.touch()
    given = {"PYTHON": str(program), "OUT": str(tmp_path / "out"), "TOLD": str(told), **more}
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *blocks],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=False,
    )
    commands = [line.split("\0") for line in told.read_text().splitlines()]
    return done.stdout + done.stderr, done.returncode, commands


def test_blocks_run_in_order_and_go_on_after_errors(tmp_path: Path) -> None:
    text, status, commands = run(tmp_path, BCCD="some/folder", WEIGHTS="some.safetensors")
    assert [line[4:] for line in text.splitlines() if line.startswith("=== ")] == BLOCKS
    assert text.splitlines()[-1] == "2 failed: check_sdpa bccd"
    assert status == 1
    assert commands[0][:2] == ["scripts/gpu_check.py", "env"]
    assert sum("experiment=finetune" in command for command in commands) == 3
    assert (tmp_path / "out" / "gpu_op.txt").read_text() == "measured scripts/bench.py op\n"


def test_a_block_runs_alone(tmp_path: Path) -> None:
    text, status, commands = run(tmp_path, "training")
    assert status == 0
    assert "left out" in text
    assert {command[0] for command in commands} == {"train.py"}
    text, status, commands = run(tmp_path, "op")
    assert (status, len(commands)) == (2, 4)
    assert "op: no such block: choose from" in text


def understood(command: list[str]) -> None:
    """Fails where the program would not take its arguments."""
    program, *given = command
    if program == "train.py":
        compose_train(given)
    elif program == "scripts/bench.py":
        name, *options = given
        benchmark = importlib.import_module(f"tools.bench.{name}")
        parser = argparse.ArgumentParser(exit_on_error=False)
        add_arguments(parser, benchmark.Options)
        parser.add_argument("--json")
        read = from_arguments(benchmark.Options, parser.parse_args(options))
        if hasattr(read, "experiment"):
            compose_experiment(read.experiment, 80, read.overrides)
    else:
        assert program in ("scripts/gpu_check.py", "-m"), program


def test_every_command_is_understood(tmp_path: Path) -> None:
    _, _, commands = run(tmp_path, BCCD="some/folder", WEIGHTS="some.safetensors")
    checked = [part for command in commands if command[0] == "scripts/gpu_check.py"
               for part in command[1 : command.index("--device")]]  # fmt: skip
    assert sorted(checked) == sorted(PARTS)
    assert len(commands) == 21
    for command in commands:
        understood(command)
    with pytest.raises(SystemExit):
        understood(["scripts/bench.py", "op", "--no-such-option"])
