"""Commands in a fork of a process that has imported the libraries: importing them takes seconds,
and the tests give about a hundred commands.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARIES = ["torch", "torchvision", "lightning.pytorch", "hydra.main", "timm", "matplotlib.pyplot"]

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(LIBRARIES)


def run_warm(
    line: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float
) -> "subprocess.CompletedProcess[str]":
    """As ``subprocess.run`` with the output captured as text; ``line`` is python, script, words."""
    outputs = [cwd / f".{name}-{os.getpid()}" for name in ("stdout", "stderr")]
    process = _fork.Process(target=_become, args=(line[1:], cwd, dict(env), outputs))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(list(line), timeout)
    stdout, stderr = (path.read_text(encoding="utf-8", errors="replace") for path in outputs)
    for path in outputs:
        path.unlink()
    return subprocess.CompletedProcess(list(line), process.exitcode, stdout, stderr)


def _become(line: Sequence[str], cwd: Path, env: dict[str, str], outputs: Sequence[Path]) -> None:
    """Be what the interpreter would be after starting the script."""
    for number, path in enumerate(outputs, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = list(line)
    sys.path.insert(0, str(Path(line[0]).parent))
    try:
        runpy.run_path(line[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
