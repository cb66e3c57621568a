"""Heartbeats by which the processes of a run know each other's state.

Each process writes to the shared folder ``RUN/ranks`` that it is alive and what it is doing. The
others can then name the one that they wait for, even if it no longer responds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

DONE = "done"
"""``Heartbeat.ended`` of a process that finished without an error."""


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The state of process ``pid``, which has rank ``rank`` in the run ``run``. ``started`` is its
    start time in clock ticks (process ids are reused), ``machine`` is ``this_machine()`` there, and
    ``host`` the host's name; ``number`` counts its heartbeats.

    ``stage`` counts steps that all processes reach equally often, and ``at`` names the present one.
    ``ended`` is None while the process runs, else how it ended, with the exit ``status``;
    ``reported``: the user has seen that message. ``advice`` is what to do when the run fails.
    """

    rank: int
    run: str
    host: str
    machine: str
    pid: int
    started: int
    number: int = 0
    stage: int = 0
    at: str = "the start"
    ended: str | None = None
    status: int = 0
    reported: bool = False
    advice: str | None = None

    @classmethod
    def own(cls, rank: int, run: str, advice: str | None) -> Heartbeat:
        """The first heartbeat of this process."""
        pid = os.getpid()
        _, started = process_state(pid) or ("", 0)
        return cls(
            rank=rank,
            run=run,
            host=socket.gethostname(),
            machine=this_machine(),
            pid=pid,
            started=started,
            advice=advice,
        )

    @property
    def on_this_machine(self) -> bool:
        """Whether ``pid`` can be looked up by this process."""
        return self.machine == this_machine()

    @property
    def process(self) -> tuple[int, str, int, int]:
        """A unique key of the process."""
        return self.rank, self.machine, self.pid, self.started


@cache
def this_machine() -> str:
    """Identifies the namespace of process ids: a machine, or a container on it. Several may share
    a host name.
    """
    name = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{name} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return name


class HeartbeatFolder:
    """The heartbeats of the run ``run`` in ``folder``; those of other runs are ignored."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        self._earlier: frozenset[tuple[int, str, int, int]] = frozenset()

    def ignore_ended(self) -> None:
        """Ignore heartbeats of processes that have already ended. A run restarted by torchrun has
        the address of the previous one, and rank 0 may be late to clear the folder.
        """
        ended = (s for s in self.read().values() if s.ended is not None or is_gone(s))
        self._earlier = frozenset(beat.process for beat in ended)

    def clear(self) -> None:
        """Remove the files of an earlier run."""
        for path in self.folder.glob("*"):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def put(self, beat: Heartbeat) -> None:
        """Write a heartbeat over the process's previous one. A folder that is not writable is
        reported elsewhere, where checkpoints are saved.
        """
        path = self.folder / f"{beat.rank}.json"
        part = path.with_suffix(".part")
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(asdict(beat)))
            part.replace(path)

    def read(self) -> Mapping[int, Heartbeat]:
        """The latest heartbeat of each process by rank."""
        found = {}
        paths: list[Path] = []
        with suppress(OSError):
            paths.extend(self.folder.glob("*.json"))
        for path in paths:
            with suppress(OSError, ValueError, TypeError):  # partial, or another version's
                beat = Heartbeat(**json.loads(path.read_text()))
                if beat.run == self.run and beat.process not in self._earlier:
                    found[beat.rank] = beat
        return found

    def claim(self, what: str) -> bool:
        """Whether this process is the first of the run to claim ``what``, and so reports it."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"reported-{what}").touch(exist_ok=False)
            return True
        return not self.folder.is_dir()


def process_state(pid: int) -> tuple[str, int] | None:
    """The state of a local process (a letter, as in ``ps``: ``T`` is stopped, ``Z`` a zombie) and
    its start time in clock ticks; None if there is no such process, or no /proc.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[19])


def is_gone(beat: Heartbeat) -> bool:
    """Whether the process is known to exist no longer."""
    if not beat.on_this_machine or not Path("/proc/self/stat").exists():
        return False
    state = process_state(beat.pid)
    return state is None or state[0] in "ZX" or state[1] != beat.started


def is_stopped(beat: Heartbeat) -> bool:
    """Whether the process is known to be stopped by SIGSTOP, Ctrl-Z or a debugger."""
    state = process_state(beat.pid) if beat.on_this_machine else None
    return state is not None and state == ("T", beat.started)


def exit_reason(code: int) -> str:
    """The exit code of a process in words."""
    if code >= 0:
        return f"exited with status {code}"
    name = signal.Signals(-code).name
    memory = ", as the out-of-memory killer does" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{memory}"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another process as seen by this one: its latest heartbeat (None before the first), the
    seconds since that one arrived, and its exit code if known.
    """

    rank: int
    beat: Heartbeat | None
    silent_s: float
    code: int | None = None

    def lost(self) -> str | None:
        """Why the process will never respond again; None if it may."""
        beat = self.beat
        if beat is not None and beat.ended is not None:
            return None if beat.ended == DONE else f"ended: {beat.ended}"
        if self.code:
            return exit_reason(self.code)
        if beat is not None and is_gone(beat):
            return f"is gone: process {beat.pid} was killed, or crashed, after {beat.at}"
        return None

    def late(self, stage: int, silence_s: float) -> str | None:
        """Why others wait for the process at ``stage``; None if they do not."""
        beat = self.beat
        if beat is None:
            return "has not started yet"
        if beat.ended is not None:
            return None
        where = f"process {beat.pid} on {beat.host}, last at {beat.at}"
        if is_stopped(beat):
            return f"is stopped ({where}; kill -CONT {beat.pid} resumes it)"
        if self.silent_s > silence_s:
            return f"sends no heartbeat ({where})"
        return f"is still at {beat.at} ({where.partition(',')[0]})" if beat.stage < stage else None


class Peers:
    """The other processes of a run of ``size`` processes, as seen by ``rank``."""

    def __init__(self, beats: HeartbeatFolder, rank: int, size: int) -> None:
        self._beats, self._others = beats, [r for r in range(size) if r != rank]
        self._since: dict[int, tuple[int, float]] = {}

    def poll(self, now: float, codes: Mapping[int, int | None]) -> list[Peer]:
        """All of them at time ``now`` (s); ``codes`` are exit codes by rank, where known."""
        beats = self._beats.read()
        found = []
        for rank in self._others:
            beat = beats.get(rank)
            number = -1 if beat is None else beat.number
            if self._since.get(rank, (None, 0.0))[0] != number:
                self._since[rank] = (number, now)
            silent = now - self._since[rank][1]
            found.append(Peer(rank=rank, beat=beat, silent_s=silent, code=codes.get(rank)))
        return found

    def reset_silence(self) -> None:
        """Measure all silences from now on."""
        self._since.clear()


def last_beat(beat: Heartbeat, ended: str, status: int, reported: bool) -> Heartbeat:
    """The last heartbeat of a process, which has ended."""
    text = (ended.strip().splitlines() or ["unknown"])[0]
    return replace(beat, number=beat.number + 1, ended=text, status=status, reported=reported)
