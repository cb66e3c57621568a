"""A job as a process, which no other process does at the same time."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from codetr.errors import UserError
from codetr.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Start:
    """``command`` to be run for the job in ``folder`` with the environment ``env``."""

    command: tuple[str, ...]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)


def begin(start: Start, env: Mapping[str, str], *, console: bool) -> subprocess.Popen[bytes]:
    """Start the process; its output goes to ``<folder>/console.txt``, or with ``console`` to the
    terminal. ``env`` is added to that of ``start``.

    The process holds a lock on its folder as long as it lives, even if what started it is gone:
    a job that goes on in the background is not started a second time. Raises UserError then.
    """
    start.folder.mkdir(parents=True, exist_ok=True)
    with RunFolder(start.folder).lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{start.folder}: another process is running this job: wait for it, or stop it"
            ) from error
        full = {**start.env, **env}
        if console:
            return subprocess.Popen(start.command, env=full, pass_fds=[lock.fileno()])
        with RunFolder(start.folder).console.open("ab") as output:
            return subprocess.Popen(
                start.command, env=full, pass_fds=[lock.fileno()], stdout=output, stderr=output
            )


def run_to_end(start: Start) -> int:
    """Run the process to its end, and return its exit status: what a cluster's node does."""
    return begin(start, {}, console=True).wait()
