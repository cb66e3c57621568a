"""The job script for Slurm, with programs that stand for Slurm's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRUN = """#!/bin/sh
echo "$@" > told
exit $STATUS
"""
SCONTROL = """#!/bin/sh
echo "$@" > requeued
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with programs that note what they are told."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def submit(place: Path, *words: str, status: int = 0) -> int:
    env = {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "STATUS": str(status)}
    env |= {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ID": "77"}
    script = ROOT / "scripts/slurm.sh"
    return subprocess.run(["bash", script, *words], cwd=place, env=env, check=False).returncode


def test_all_tasks_are_told_of_all_machines(place: Path) -> None:
    assert submit(place, "data.root=my data", "name=mine") == 0
    told = (place / "told").read_text().strip()
    start = "codetr-train trainer=ddp trainer.num_nodes=2 trainer.devices=8"
    assert told == f"{start} data.root=my data name=mine ckpt_path=last"
    assert not (place / "requeued").exists()


def test_stopped_job_is_queued_again_and_resumes(place: Path) -> None:
    assert submit(place, "name=mine", status=143) == 143
    assert (place / "requeued").read_text() == "requeue 77\n"
    assert submit(place, "name=mine", "paths.runs=/elsewhere") == 0
    told = (place / "told").read_text()
    assert told.endswith(" name=mine paths.runs=/elsewhere ckpt_path=last\n")


def test_failed_job_is_not(place: Path) -> None:
    assert submit(place, "name=mine", status=2) == 2
    assert not (place / "requeued").exists()


def test_another_checkpoint_would_start_anew_with_every_job(place: Path) -> None:
    assert submit(place, "name=mine", "ckpt_path=a.ckpt") == 2
    assert not (place / "told").exists()


def test_name_is_needed(place: Path) -> None:
    assert submit(place, "seed=1") == 2
    assert not (place / "told").exists()
