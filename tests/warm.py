"""Commands and ranks in forks of a process that has imported what they need: importing it takes
seconds, and the tests give about a hundred commands.
"""

import atexit
import itertools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.multiprocessing import start_processes

LIBRARIES = ["torch", "torchvision", "lightning.pytorch", "hydra.main", "timm", "matplotlib.pyplot"]
COMMANDS = [
    *("codetr.training.train", "codetr.training.evaluate", "codetr.inference.command"),
    *("codetr.analysis.inspect_data", "codetr.checkpoints.convert"),
]
"""What the commands import once hydra has read their words."""

TIMEOUT_S = 600
"""For what takes less than a minute: a machine with other work to do can be ten times slower."""

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload([*LIBRARIES, *COMMANDS])
_numbers = itertools.count()


def run_warm(
    line: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float = TIMEOUT_S
) -> "subprocess.CompletedProcess[str]":
    """As ``subprocess.run`` with the output captured as text; ``line`` is python, script, words."""
    return Warm(line, cwd, env).ended(timeout)


def run_ranks(function: Callable[..., object], args: tuple[Any, ...], ranks: int) -> None:
    """Call ``function(rank, *args)`` in a process for each of ``ranks``, until all have ended."""
    start_processes(function, args, ranks, start_method="forkserver")


class Warm:
    """A command that has been started; ``pid`` is its process, which leads a group of its own."""

    def __init__(self, line: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.line = list(line)
        self._outputs = [cwd / f".{name}-{next(_numbers)}" for name in ("stdout", "stderr")]
        self._process = _fork.Process(
            target=_become, args=(line[1:], cwd, dict(env), self._outputs)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def ended(self, timeout: float) -> "subprocess.CompletedProcess[str]":
        """Wait for its end; kill it and raise TimeoutExpired where that does not come in time."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self.line, timeout)
        stdout, stderr = (p.read_text(encoding="utf-8", errors="replace") for p in self._outputs)
        for path in self._outputs:
            path.unlink()
        return subprocess.CompletedProcess(self.line, self._process.exitcode, stdout, stderr)


def _become(line: Sequence[str], cwd: Path, env: dict[str, str], outputs: Sequence[Path]) -> None:
    """Be what the interpreter would be after starting the script."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in enumerate(outputs, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = list(line)
    own = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [str(Path(line[0]).parent), *(path for path in own if path not in sys.path)]
    try:
        runpy.run_path(line[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
