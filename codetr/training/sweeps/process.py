"""A job as a process, with a lock against running it twice at the same time."""

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
    """The ``command`` of the job in ``folder``, with the environment ``env``."""

    command: tuple[str, ...]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)


def begin(start: Start, env: Mapping[str, str], *, console: bool) -> subprocess.Popen[bytes]:
    """Start the process, with ``env`` added to the environment of ``start``. Its output goes to
    ``<folder>/console.txt``, or with ``console`` to the terminal.

    The process locks its folder as long as it lives, even if its parent has ended. Raises UserError
    if the folder is locked, so that a job in the background is not started twice.
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
    """Run the process to its end on a cluster node; returns its exit status."""
    return begin(start, {}, console=True).wait()
