"""Ends a run of several processes when one of them is lost, and says which."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from types import TracebackType
from typing import Any

import torch.distributed as dist
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf
from torch.distributed.constants import default_pg_timeout

from codetr.training.error_lines import one_line
from codetr.training.peers import DONE, Board, Peer, Peers, Sign, is_gone, told
from codetr.training.stopping import Stopped

log = logging.getLogger(__name__)

LIMIT_KEY = "trainer.strategy.timeout.minutes"
"""Of ``trainer=ddp`` and ``trainer=fsdp``."""
SAID_AFTER_S = 60.0
LOOKS_AFTER_S = 5.0
"""Of waiting; processes that go on do not read each other's signs."""
BEAT_S = 5.0
GRACE_S = 3.0
"""For a process to end by itself, with an error of its own."""
FINISH_S = 60.0
"""For one that is ending already: loggers send what they have."""
CHILDREN_S = 10.0
TICK_S = 0.5
FILES_PER_S = 16
"""That a process reads of a shared folder while it waits; all of them wait together."""

_CONNECTION = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset)|broken pipe|socket|tcpstore|timed out waiting",
    re.IGNORECASE,
)
_TURN_S = 0.2
"""By which a process lets those of lower ranks speak first."""


class Watch:
    """Context of what the processes of ``trainer`` do together. Does nothing for a single one.

    A thread leaves signs of this process (``Board``), and looks at those of the others when this
    one has come no further for a while. Where one is lost (killed, ended by an error), this one
    ends, too; where one is late, that is said after ``SAID_AFTER_S``, and the run ends after
    ``limit_s``. One process says so, in a line that ends with the first process's ``advice``.
    """

    def __init__(self, trainer: Trainer, folder: Path, limit_s: float, advice: str) -> None:
        self.trainer, self.limit_s = trainer, limit_s
        self.rank, size = trainer.global_rank, trainer.world_size
        self.alone = size == 1
        self._beat_s = min(BEAT_S, limit_s / 20)
        self._silence_s = 4 * self._beat_s + TICK_S
        self._apart_s = max(TICK_S, size / FILES_PER_S)
        self._said_after_s = min(SAID_AFTER_S, limit_s / 2)
        self._own_advice = advice
        self._children: Sequence[Popen[bytes]] = ()
        self._folder, self._size = folder, size
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._progress = self._beat = self._looked = self._judged = time.monotonic()
        self._said_at = -1
        self._broken = self._ending = False
        self._lost_since: float | None = None

    def __enter__(self) -> Watch:
        if self.alone:
            return self
        environment: Any = self.trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        run = f"{environment.main_address}:{environment.main_port}:{_job()}"
        self._board = Board(self._folder, run)
        self._peers = Peers(self._board, self.rank, self._size)
        if self.rank == 0:
            self._board.clear()
        elif environment.creates_processes_externally:
            self._board.overlook_ended()
        self._sign = Sign.own(self.rank, run, self._own_advice if self.rank == 0 else None)
        self._board.put(self._sign)
        self.trainer.callbacks.insert(0, _Places(self))  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.alone:
            return
        if error is not None and is_of_connection(error):
            self._ending = False
            self._find_out(error)
        self._over.set()
        self._thread.join()
        if error is None:
            self._leave()
        else:
            self._fail(error)

    def reached(self, at: str, stage: bool = True) -> None:
        """This process is ``at``; ``stage``: where all come equally often."""
        with self._lock:
            self._sign = replace(self._sign, at=at, stage=self._sign.stage + int(stage))
        self._progress = time.monotonic()

    def ending(self) -> None:
        """An error of this process's own is on its way to the user."""
        self._ending = True

    def _run(self) -> None:
        while not self._over.wait(TICK_S):
            now = time.monotonic()
            if now - self._looked > self._silence_s:  # all were suspended: nobody was waited for
                self._progress = now
                self._peers.forget()
            self._looked = now
            self._take_children()
            if now - self._beat >= self._beat_s:
                self._beat = now
                self._put()
            waited = now - self._progress
            blocked = waited >= min(LOOKS_AFTER_S, self.limit_s / 4)
            concerned = blocked or self._broken or any(self._codes().values())
            if concerned and now - self._judged >= self._apart_s:
                self._judged = now
                self._judge(now, waited)

    def _take_children(self) -> None:
        """Observe the processes that Lightning has started in its place: it would kill this one
        when it finds one ended, without a word.
        """
        launcher: Any = self.trainer.strategy.launcher
        started = getattr(launcher, "procs", None)
        if not started or len(started) < launcher.num_processes - 1:  # it has not begun, or ended
            return
        if started is not self._children:
            self._children = launcher.procs = list(started)
            started.clear()

    def _codes(self) -> Mapping[int, int | None]:
        return {self.rank + 1 + i: child.poll() for i, child in enumerate(self._children)}

    def _put(self, sign: Sign | None = None) -> None:
        with self._lock:
            self._sign = replace(sign or self._sign, number=self._sign.number + 1)
            self._board.put(self._sign)

    def _judge(self, now: float, waited: float) -> None:
        peers = self._peers.look(now, self._codes())
        lost = [peer for peer in peers if peer.lost() is not None]
        if lost:
            self._lost_since = self._lost_since or now
            if now - self._lost_since >= (FINISH_S if self._ending else GRACE_S):
                self._end_after(lost[0])
            return
        stage, late = self._sign.stage, self._late(peers)
        if not late:
            return
        named = [f"rank {peer.rank} {why}" for peer, why in late.items()]
        if waited >= self.limit_s and stage > 0:  # torch itself limits the waiting for the start
            self._end(
                f"rank {self.rank} has waited {_duration(waited)} at {self._sign.at} for others "
                f"({LIMIT_KEY}): {'; '.join(named)}",
                hanging=tuple(late),
            )
        if waited >= self._said_after_s and self._said_at != stage:
            self._said_at = stage
            self._turn()
            if self._board.first(f"waiting-{stage}"):
                log.warning(
                    "rank %d has waited %s at %s for others, and ends the run after %s (%s): %s",
                    *(self.rank, _duration(waited), self._sign.at, _duration(self.limit_s)),
                    *(LIMIT_KEY, "; ".join(named)),
                )

    def _late(self, peers: Sequence[Peer]) -> dict[Peer, str]:
        """Whom this process waits for, and why."""
        found = {peer: peer.late(self._sign.stage, self._silence_s) for peer in peers}
        return {peer: why for peer, why in found.items() if why is not None}

    def _find_out(self, error: BaseException) -> None:
        """Who was at the other end of a connection that broke. The thread ends the process when it
        knows; of a process on another machine silence alone tells.
        """
        self._broken = True
        deadline = time.monotonic() + GRACE_S + 5 * self._beat_s
        while time.monotonic() < deadline:
            time.sleep(TICK_S)
        late = self._late(self._peers.look(time.monotonic(), self._codes()))
        known = "; ".join(f"rank {peer.rank} {why}" for peer, why in late.items())
        said = known or " ".join(str(error).split())[:300]
        self._end(f"rank {self.rank} has lost the connection to another one ({said})")

    def _end_after(self, peer: Peer) -> None:
        sign, why = peer.sign, peer.lost()
        heard = sign is not None and sign.told and sign.here
        status = sign.status if sign is not None and sign.ended else 0
        if sign is None and peer.code and peer.code > 0:  # it has failed before it came here
            heard, status = True, peer.code
        self._end(f"rank {peer.rank} {why}", status=status or 1, heard=heard)

    def _end(
        self, text: str, status: int = 1, heard: bool = False, hanging: Sequence[Peer] = ()
    ) -> None:
        """End this process at once: what it waits for does not come, and it cannot be asked."""
        self._turn()
        if not heard and self._board.first("end"):
            print(f"error: {text}: {self._advice()}", file=sys.stderr, flush=True)
        self._put(told(self._sign, text, status, told=True))
        for peer in hanging:
            if peer.sign is not None and peer.sign.here and not is_gone(peer.sign):
                _kill(peer.sign.pid)
        deadline = time.monotonic() + CHILDREN_S
        for child in self._children:
            try:
                child.wait(max(deadline - time.monotonic(), 0.1))
            except TimeoutExpired:
                child.kill()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)

    def _fail(self, error: BaseException) -> None:
        """Tell the others of an error of this process's own, which goes on to the user; unless one
        of another has already.
        """
        text, status = _ending(error)
        if isinstance(error, Stopped):  # as a rule all are, at the same step; the first says so
            self._put(told(self._sign, text, status, told=self.rank == 0))
            return
        self._put(told(self._sign, text, status, told=one_line(error) is not None))
        first = self._board.first("failure")
        if not first and any(sign.ended == self._sign.ended for sign in self._others()):
            raise SystemExit(status) from None

    def _others(self) -> list[Sign]:
        return [sign for sign in self._board.signs().values() if sign.rank != self.rank]

    def _leave(self) -> None:
        self._put(told(self._sign, DONE, 0, told=True))
        if all(sign.ended is not None for sign in self._others()):
            self._board.clear()

    def _advice(self) -> str:
        first = self._board.signs().get(0)
        said = first.advice if first is not None else None
        return said or self._own_advice

    def _turn(self) -> None:
        time.sleep(_TURN_S * min(self.rank, 10))


class _Places(Callback):
    """Tells a ``Watch`` where this process is. Comes first among callbacks: others wait."""

    def __init__(self, watch: Watch) -> None:
        self._reached, self._ending = watch.reached, watch.ending

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """All are there."""
        self._reached("the set-up")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch is there."""
        self._reached(_batch(trainer, batch_idx))

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Any) -> None:
        """Gradients are summed over processes."""
        batch_idx = trainer.fit_loop.epoch_loop.batch_idx
        self._reached(f"the gradients of {_batch(trainer, batch_idx)}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The next batch is loaded."""
        self._reached(f"loading what follows {_batch(trainer, batch_idx)}")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """The first process writes."""
        self._reached("writing a checkpoint")

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """All validate."""
        self._reached("the start of a validation")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Not all have equally many."""
        self._reached(f"validation batch {batch_idx + 1}", stage=False)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Detections are gathered, and evaluated by the first process."""
        self._reached("the end of a validation")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """It is evaluated."""
        self._reached("what follows a validation")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Not all have equally many."""
        self._reached(f"batch {batch_idx + 1}", stage=False)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Detections are gathered."""
        self._reached("the end of the evaluation")

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """All is trained."""
        self._reached("the end of training")

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Loggers are closed before the error goes on."""
        self._ending()


def waiting_limit_s(cfg: DictConfig) -> float:
    """How long a process waits for others: the strategy's timeout, or torch's own without one."""
    timeout = OmegaConf.select(cfg, LIMIT_KEY.rpartition(".")[0], default=None)
    limit = instantiate(timeout) if timeout is not None else default_pg_timeout
    return float(limit.total_seconds())


def is_of_connection(error: BaseException) -> bool:
    """Whether the error is what gloo, NCCL or torch's store say when another process is lost."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and _CONNECTION.search(str(error)) is not None


def _ending(error: BaseException) -> tuple[str, int]:
    """How a process ends by the error, and its exit status."""
    if isinstance(error, Stopped):
        return str(error), error.exit_code
    known = one_line(error)
    if known is not None:
        return known, 2
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return f"exit with status {error.code}", error.code
    return f"{type(error).__name__}: {error}", 1


def _job() -> str:
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID")
    return ":".join(os.environ.get(name, "") for name in (*names, "SLURM_RESTART_COUNT"))


def _batch(trainer: Trainer, batch_idx: int) -> str:
    return f"batch {batch_idx + 1} of epoch {trainer.current_epoch + 1}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _kill(pid: int) -> None:
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)
