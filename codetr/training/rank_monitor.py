"""Ends a run of several processes when one of them fails or hangs, and reports which."""

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
from codetr.training.heartbeats import (
    DONE,
    Heartbeat,
    HeartbeatFolder,
    Peer,
    Peers,
    is_gone,
    last_beat,
)
from codetr.training.stopping import Stopped

log = logging.getLogger(__name__)

LIMIT_KEY = "trainer.strategy.timeout.minutes"
"""Setting of ``trainer=ddp`` and ``trainer=fsdp``."""
WARN_AFTER_S = 60.0
CHECK_AFTER_S = 5.0
"""Seconds of waiting after which a process reads the heartbeats of the others."""
BEAT_S = 5.0
GRACE_S = 3.0
"""Time for a process to exit by itself, with an error of its own."""
FINISH_S = 60.0
"""Time for a process that is already exiting: loggers flush."""
CHILDREN_S = 10.0
TICK_S = 0.5
FILES_PER_S = 16
"""Read rate on the shared folder, per waiting process; usually all of them wait at once."""

_CONNECTION = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset)|broken pipe|socket|tcpstore|timed out waiting",
    re.IGNORECASE,
)
_TURN_S = 0.2
"""Delay per rank, so that the lowest rank reports first."""


class RankMonitor:
    """Context in which the processes of ``trainer`` monitor each other. Does nothing for a single
    process.

    A thread writes this process's heartbeats (``HeartbeatFolder``), and reads those of the others
    when this process has made no progress for a while. If one is lost (killed, or ended by an
    error), this process exits too; if one is late, a warning says so after ``WARN_AFTER_S``, and
    the run ends after ``limit_s``. One process reports it, in a line that ends with rank 0's
    ``advice``.
    """

    def __init__(self, trainer: Trainer, folder: Path, limit_s: float, advice: str) -> None:
        self.trainer, self.limit_s = trainer, limit_s
        self.rank, size = trainer.global_rank, trainer.world_size
        self.alone = size == 1
        self._beat_s = min(BEAT_S, limit_s / 20)
        self._silence_s = 4 * self._beat_s + TICK_S
        self._apart_s = max(TICK_S, size / FILES_PER_S)
        self._warn_after_s = min(WARN_AFTER_S, limit_s / 2)
        self._own_advice = advice
        self._children: Sequence[Popen[bytes]] = ()
        self._folder, self._size = folder, size
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._progress = self._beat_at = self._ticked_at = self._judged = time.monotonic()
        self._warned_at = -1
        self._broken = self._ending = False
        self._lost_since: float | None = None

    def __enter__(self) -> RankMonitor:
        if self.alone:
            return self
        environment: Any = self.trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        run = f"{environment.main_address}:{environment.main_port}:{_job()}"
        self._beats = HeartbeatFolder(self._folder, run)
        self._peers = Peers(self._beats, self.rank, self._size)
        if self.rank == 0:
            self._beats.clear()
        elif environment.creates_processes_externally:
            self._beats.ignore_ended()
        self._own_beat = Heartbeat.own(self.rank, run, self._own_advice if self.rank == 0 else None)
        self._beats.put(self._own_beat)
        self.trainer.callbacks.insert(0, _ProgressReporter(self))  # type: ignore[attr-defined]
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
        if error is not None and is_connection_error(error):
            self._ending = False
            self._find_lost_peer(error)
        self._over.set()
        self._thread.join()
        if error is None:
            self._leave()
        else:
            self._fail(error)

    def reached(self, at: str, stage: bool = True) -> None:
        """Record that this process is ``at`` a place; ``stage``: all reach it equally often."""
        with self._lock:
            self._own_beat = replace(self._own_beat, at=at, stage=self._own_beat.stage + int(stage))
        self._progress = time.monotonic()

    def ending(self) -> None:
        """Record that this process is exiting with an error of its own."""
        self._ending = True

    def _run(self) -> None:
        while not self._over.wait(TICK_S):
            now = time.monotonic()
            if now - self._ticked_at > self._silence_s:  # all were suspended, so none was waiting
                self._progress = now
                self._peers.reset_silence()
            self._ticked_at = now
            self._take_children()
            if now - self._beat_at >= self._beat_s:
                self._beat_at = now
                self._put()
            waited = now - self._progress
            blocked = waited >= min(CHECK_AFTER_S, self.limit_s / 4)
            check = blocked or self._broken or any(self._codes().values())
            if check and now - self._judged >= self._apart_s:
                self._judged = now
                self._judge(now, waited)

    def _take_children(self) -> None:
        """Take over the child processes from Lightning, which would kill this process without a
        message when a child exits.
        """
        launcher: Any = self.trainer.strategy.launcher
        started = getattr(launcher, "procs", None)
        if not started or len(started) < launcher.num_processes - 1:  # not launched, or ended
            return
        if started is not self._children:
            self._children = launcher.procs = list(started)
            started.clear()

    def _codes(self) -> Mapping[int, int | None]:
        return {self.rank + 1 + i: child.poll() for i, child in enumerate(self._children)}

    def _put(self, beat: Heartbeat | None = None) -> None:
        with self._lock:
            self._own_beat = replace(beat or self._own_beat, number=self._own_beat.number + 1)
            self._beats.put(self._own_beat)

    def _judge(self, now: float, waited: float) -> None:
        peers = self._peers.poll(now, self._codes())
        lost = [peer for peer in peers if peer.lost() is not None]
        if lost:
            self._lost_since = self._lost_since or now
            if now - self._lost_since >= (FINISH_S if self._ending else GRACE_S):
                self._end_after(lost[0])
            return
        stage, late = self._own_beat.stage, self._late(peers)
        if not late:
            return
        named = [f"rank {peer.rank} {why}" for peer, why in late.items()]
        if waited >= self.limit_s and stage > 0:  # torch limits the wait for rendezvous
            self._end(
                f"rank {self.rank} has waited {_duration(waited)} at {self._own_beat.at} for "
                f"others ({LIMIT_KEY}): {'; '.join(named)}",
                hanging=tuple(late),
            )
        if waited >= self._warn_after_s and self._warned_at != stage:
            self._warned_at = stage
            self._wait_turn()
            if self._beats.claim(f"waiting-{stage}"):
                log.warning(
                    "rank %d has waited %s at %s for others, and ends the run after %s (%s): %s",
                    *(self.rank, _duration(waited), self._own_beat.at, _duration(self.limit_s)),
                    *(LIMIT_KEY, "; ".join(named)),
                )

    def _late(self, peers: Sequence[Peer]) -> dict[Peer, str]:
        """The peers that this process waits for, and why."""
        found = {peer: peer.late(self._own_beat.stage, self._silence_s) for peer in peers}
        return {peer: why for peer, why in found.items() if why is not None}

    def _find_lost_peer(self, error: BaseException) -> None:
        """Find the peer behind a broken connection. The thread ends this process when it knows; a
        peer on another machine is only known to be lost by its silence.
        """
        self._broken = True
        deadline = time.monotonic() + GRACE_S + 5 * self._beat_s
        while time.monotonic() < deadline:
            time.sleep(TICK_S)
        late = self._late(self._peers.poll(time.monotonic(), self._codes()))
        known = "; ".join(f"rank {peer.rank} {why}" for peer, why in late.items())
        cause = known or " ".join(str(error).split())[:300]
        self._end(f"rank {self.rank} has lost the connection to another one ({cause})")

    def _end_after(self, peer: Peer) -> None:
        beat, why = peer.beat, peer.lost()
        reported = beat is not None and beat.reported and beat.on_this_machine
        status = beat.status if beat is not None and beat.ended else 0
        if beat is None and peer.code and peer.code > 0:  # failed before its first heartbeat
            reported, status = True, peer.code
        self._end(f"rank {peer.rank} {why}", status=status or 1, reported=reported)

    def _end(
        self, text: str, status: int = 1, reported: bool = False, hanging: Sequence[Peer] = ()
    ) -> None:
        """Exit at once: this process is blocked in a collective call and cannot be interrupted."""
        self._wait_turn()
        if not reported and self._beats.claim("end"):
            print(f"error: {text}: {self._advice()}", file=sys.stderr, flush=True)
        self._put(last_beat(self._own_beat, text, status, reported=True))
        for peer in hanging:
            if peer.beat is not None and peer.beat.on_this_machine and not is_gone(peer.beat):
                _kill(peer.beat.pid)
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
        """Record an error of this process for the others. It propagates to the user unless another
        process has reported the same one.
        """
        text, status = _ending(error)
        if isinstance(error, Stopped):  # usually all are, at the same step; rank 0 reports it
            self._put(last_beat(self._own_beat, text, status, reported=self.rank == 0))
            return
        self._put(last_beat(self._own_beat, text, status, reported=one_line(error) is not None))
        first = self._beats.claim("failure")
        if not first and any(beat.ended == self._own_beat.ended for beat in self._others()):
            raise SystemExit(status) from None

    def _others(self) -> list[Heartbeat]:
        return [beat for beat in self._beats.read().values() if beat.rank != self.rank]

    def _leave(self) -> None:
        self._put(last_beat(self._own_beat, DONE, 0, reported=True))
        if all(beat.ended is not None for beat in self._others()):
            self._beats.clear()

    def _advice(self) -> str:
        first = self._beats.read().get(0)
        advice = first.advice if first is not None else None
        return advice or self._own_advice

    def _wait_turn(self) -> None:
        time.sleep(_TURN_S * min(self.rank, 10))


class _ProgressReporter(Callback):
    """Reports this process's progress to a ``RankMonitor``. The first callback, since others may
    wait for other processes.
    """

    def __init__(self, monitor: RankMonitor) -> None:
        self._reached, self._ending = monitor.reached, monitor.ending

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """All processes have been set up."""
        self._reached("the set-up")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch has been loaded."""
        self._reached(_batch(trainer, batch_idx))

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Any) -> None:
        """Backward all-reduces the gradients."""
        batch_idx = trainer.fit_loop.epoch_loop.batch_idx
        self._reached(f"the gradients of {_batch(trainer, batch_idx)}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The next batch is loaded now."""
        self._reached(f"loading what follows {_batch(trainer, batch_idx)}")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Rank 0 writes."""
        self._reached("writing a checkpoint")

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Validation starts on all processes."""
        self._reached("the start of a validation")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Numbers of batches differ between processes."""
        self._reached(f"validation batch {batch_idx + 1}", stage=False)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Detections are gathered, and evaluated by rank 0."""
        self._reached("the end of a validation")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Evaluation is complete."""
        self._reached("what follows a validation")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Numbers of batches differ between processes."""
        self._reached(f"batch {batch_idx + 1}", stage=False)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Detections are gathered."""
        self._reached("the end of the evaluation")

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Training is complete."""
        self._reached("the end of training")

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Loggers are closed before the error propagates."""
        self._ending()


def waiting_limit_s(cfg: DictConfig) -> float:
    """How long a process waits for others: the strategy's timeout, or torch's own without one."""
    timeout = OmegaConf.select(cfg, LIMIT_KEY.rpartition(".")[0], default=None)
    limit = instantiate(timeout) if timeout is not None else default_pg_timeout
    return float(limit.total_seconds())


def is_connection_error(error: BaseException) -> bool:
    """Whether gloo, NCCL or torch's store raise such an error when a peer is lost."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and _CONNECTION.search(str(error)) is not None


def _ending(error: BaseException) -> tuple[str, int]:
    """The error as a message, and the exit status that it leads to."""
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
