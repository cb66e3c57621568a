"""The job script of docs/reliability.md, with programs that stand for Slurm's."""

import os
import re
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
from runs import TIMEOUT_S, Place, differences, outcome

SRUN = '#!/bin/bash\necho $$ > srun.pid\nexec "$@"\n'
SCONTROL = '#!/bin/bash\necho "$@" >> scontrol.txt\n'


def programs(folder: Path) -> Path:
    """A folder of what the script calls."""
    folder.mkdir()
    python = f'#!/bin/bash\nexec {shlex.quote(sys.executable)} "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
def test_a_job_that_reaches_its_limit_is_requeued_and_goes_on(
    place: Place, whole: Callable[..., dict[str, Any]]
) -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    (text,) = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    command = f"python {ROOT / 'train.py'} name=run ckpt_path=last {' '.join(place.options)}"
    text, count = re.subn(r"python train\.py .*", command.replace("\\", r"\\"), text)
    assert count == 1
    script = place.folder / "job.sh"
    script.write_text(text)
    path = f"{programs(place.folder / 'bin')}:{os.environ['PATH']}"
    env = {**environment(), "PATH": path, "SLURM_JOB_ID": "7"}

    job = subprocess.Popen(["bash", script], cwd=place.folder, env=env)
    deadline = time.monotonic() + TIMEOUT_S
    while not (place.run / "metrics.csv").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(int((place.folder / "srun.pid").read_text()), signal.SIGTERM)
    assert job.wait(TIMEOUT_S) == 143
    assert (place.folder / "scontrol.txt").read_text() == "requeue 7\n"

    again = subprocess.run(
        ["bash", script], cwd=place.folder, env=env, check=False, timeout=TIMEOUT_S
    )
    assert again.returncode == 0
    assert (place.folder / "scontrol.txt").read_text() == "requeue 7\n"
    assert differences(outcome(place.run), whole()) == []
