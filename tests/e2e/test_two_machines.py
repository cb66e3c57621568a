"""Two machines of one process each, played by two torchrun agents on this one, by gloo."""

from __future__ import annotations

import csv
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, Command, environment
from warm import TIMEOUT_S

SAME = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32", "schedule.epochs=2")


def losses(run: Path) -> list[tuple[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [(row["loss"], row["train/gradient_norm"]) for row in csv.DictReader(file)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
def test_losses_are_those_of_one_machine_with_two_processes(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    options = [*small, *SAME, "data.num_workers=0"]
    done = command("train.py", *options, "trainer.devices=2", "name=one")
    assert done.returncode == 0, done.stderr[-3000:]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    agent += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    script = [str(ROOT / "train.py"), *options, "trainer.devices=1", "trainer.num_nodes=2"]
    machines = [
        subprocess.Popen(
            [*agent, f"--node_rank={rank}", *script, "name=two"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [machine.communicate(timeout=TIMEOUT_S)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said[0][-3000:]
    one, two = losses(tmp_path / "runs/one"), losses(tmp_path / "runs/two")
    assert len(one) > 2
    assert one == two
