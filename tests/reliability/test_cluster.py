"""scripts/slurm.sh, with programs that stand for Slurm's."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, environment
from runs import Place, differences, outcome
from warm import TIMEOUT_S

SRUN = '#!/bin/bash\necho $$ > srun.pid\nexec "$@"\n'
SCONTROL = '#!/bin/bash\necho "$@" >> scontrol.txt\n'


def programs(folder: Path) -> Path:
    """A folder of what the script calls."""
    folder.mkdir()
    train = shlex.join([sys.executable, str(ROOT / "train.py")])
    train = f'#!/bin/bash\nexec {train} "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("codetr-train", train)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
def test_a_job_that_reaches_its_limit_is_requeued_and_goes_on(
    place: Place, whole: Callable[..., dict[str, Any]]
) -> None:
    command = ["bash", str(ROOT / "scripts/slurm.sh"), "name=run", *place.options]
    path = f"{programs(place.folder / 'bin')}:{os.environ['PATH']}"
    env = {**environment(), "PATH": path, "SLURM_JOB_ID": "7"}
    env |= {"SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1"}

    job = subprocess.Popen(command, cwd=place.folder, env=env)
    deadline = time.monotonic() + TIMEOUT_S
    while not (place.run / "metrics.csv").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(int((place.folder / "srun.pid").read_text()), signal.SIGTERM)
    assert job.wait(TIMEOUT_S) == 143
    assert (place.folder / "scontrol.txt").read_text() == "requeue 7\n"

    again = subprocess.run(command, cwd=place.folder, env=env, check=False, timeout=TIMEOUT_S)
    assert again.returncode == 0
    assert (place.folder / "scontrol.txt").read_text() == "requeue 7\n"
    assert differences(outcome(place.run), whole()) == []
