"""What the processes of a run say of themselves, and what that means to the others.

Each process leaves signs in the folder that they share, ``RUN/ranks``: where it is, and that it is
alive. So another one can say which it waits for, also where none of them answers any more.
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
"""How a process ended that has nothing more to do with the others."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """Of the process ``rank`` of the run ``run``, which has started at ``started`` (in ticks of its
    machine's clock, since numbers of processes are given again). See ``this_machine``; ``host`` is
    its name.

    ``stage`` counts what all processes do equally often, ``at`` says what that is. ``ended`` is
    None while it runs, else how it ended, with the exit ``status``; ``told`` says that the user has
    read so. ``advice`` is what to do when the run ends before its time.
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
    told: bool = False
    advice: str | None = None

    @classmethod
    def own(cls, rank: int, run: str, advice: str | None) -> Sign:
        """The first one of this process."""
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
    def here(self) -> bool:
        """Whether the number of its process means anything here."""
        return self.machine == this_machine()

    @property
    def process(self) -> tuple[int, str, int, int]:
        """What no other process has."""
        return self.rank, self.machine, self.pid, self.started


@cache
def this_machine() -> str:
    """Where numbers of processes are unique: a machine, or a container on it. Neither is told by
    the host's name alone, which several may have.
    """
    name = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{name} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return name


class Board:
    """The signs of a run in ``folder``. What another run has left there is not seen."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        self._earlier: frozenset[tuple[int, str, int, int]] = frozenset()

    def overlook_ended(self) -> None:
        """See no signs of processes that have ended already. A run that torchrun starts again has
        the address of the one before, and the first process may come late to clear the folder.
        """
        ended = (s for s in self.signs().values() if s.ended is not None or is_gone(s))
        self._earlier = frozenset(sign.process for sign in ended)

    def clear(self) -> None:
        """Remove what an earlier run has left."""
        for path in self.folder.glob("*"):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def put(self, sign: Sign) -> None:
        """Leave a sign, in place of the process's last one. A folder that cannot be written to ends
        a run elsewhere, and does so in words.
        """
        path = self.folder / f"{sign.rank}.json"
        part = path.with_suffix(".part")
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(asdict(sign)))
            part.replace(path)

    def signs(self) -> Mapping[int, Sign]:
        """The last one of each process, by rank."""
        found = {}
        paths: list[Path] = []
        with suppress(OSError):
            paths.extend(self.folder.glob("*.json"))
        for path in paths:
            with suppress(OSError, ValueError, TypeError):  # being replaced, or of another version
                sign = Sign(**json.loads(path.read_text()))
                if sign.run == self.run and sign.process not in self._earlier:
                    found[sign.rank] = sign
        return found

    def first(self, what: str) -> bool:
        """Whether this process is the first of the run to ask so: then it tells the user."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"told-{what}").touch(exist_ok=False)
            return True
        return not self.folder.is_dir()


def process_state(pid: int) -> tuple[str, int] | None:
    """The state of a process of this machine (a letter, as ``ps`` shows it; ``T`` is stopped, ``Z``
    has ended) and when it started; None where there is none, or the system does not say.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[19])


def is_gone(sign: Sign) -> bool:
    """Whether the process is known not to be there any more."""
    if not sign.here or not Path("/proc/self/stat").exists():
        return False
    state = process_state(sign.pid)
    return state is None or state[0] in "ZX" or state[1] != sign.started


def is_stopped(sign: Sign) -> bool:
    """Whether the process is known to be stopped by SIGSTOP, Ctrl-Z or a debugger."""
    state = process_state(sign.pid) if sign.here else None
    return state is not None and state == ("T", sign.started)


def fate(code: int) -> str:
    """What an exit code of a process says."""
    if code >= 0:
        return f"exited with status {code}"
    name = signal.Signals(-code).name
    memory = ", as the out-of-memory killer does" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{memory}"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another process as this one sees it: its last sign (None: it never gave one), since how many
    seconds there is no newer one, and its exit code where that is known.
    """

    rank: int
    sign: Sign | None
    silent_s: float
    code: int | None = None

    def lost(self) -> str | None:
        """Why nothing will come from it any more; None where something may."""
        sign = self.sign
        if sign is not None and sign.ended is not None:
            return None if sign.ended == DONE else f"ended: {sign.ended}"
        if self.code:
            return fate(self.code)
        if sign is not None and is_gone(sign):
            return f"is gone: process {sign.pid} was killed, or crashed, after {sign.at}"
        return None

    def late(self, stage: int, silence_s: float) -> str | None:
        """Why others wait for it at ``stage``; None where they do not."""
        sign = self.sign
        if sign is None:
            return "has not come yet"
        if sign.ended is not None:
            return None
        where = f"process {sign.pid} on {sign.host}, last at {sign.at}"
        if is_stopped(sign):
            return f"is stopped ({where}; kill -CONT {sign.pid} lets it go on)"
        if self.silent_s > silence_s:
            return f"gives no sign of life ({where})"
        return f"is still at {sign.at} ({where.partition(',')[0]})" if sign.stage < stage else None


class Peers:
    """The other processes of a run of ``size``, seen from process ``rank``."""

    def __init__(self, board: Board, rank: int, size: int) -> None:
        self._board, self._others = board, [r for r in range(size) if r != rank]
        self._since: dict[int, tuple[int, float]] = {}

    def look(self, now: float, codes: Mapping[int, int | None]) -> list[Peer]:
        """All of them at the time ``now``; ``codes`` are exit codes by rank, where known."""
        signs = self._board.signs()
        found = []
        for rank in self._others:
            sign = signs.get(rank)
            number = -1 if sign is None else sign.number
            if self._since.get(rank, (None, 0.0))[0] != number:
                self._since[rank] = (number, now)
            silent = now - self._since[rank][1]
            found.append(Peer(rank=rank, sign=sign, silent_s=silent, code=codes.get(rank)))
        return found

    def forget(self) -> None:
        """Count everyone's silence from now."""
        self._since.clear()


def told(sign: Sign, ended: str, status: int, told: bool) -> Sign:
    """The last sign of a process."""
    text = (ended.strip().splitlines() or ["unknown"])[0]
    return replace(sign, number=sign.number + 1, ended=text, status=status, told=told)
