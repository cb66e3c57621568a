"""Running jobs on this machine: one after another, several at once, or one per GPU."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from codetr.errors import UserError
from codetr.run_folder import RunFolder
from codetr.training.sweeps.process import Start, begin

log = logging.getLogger(__name__)

POLL_S = 0.1
BUSY = 3
"""Exit status of a job that another process is running."""

Done = Callable[[int, int], None]
"""Called with the index and the exit status of a job when it has ended."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Runs one job at a time, with the environment variables ``env`` that select its resources."""

    env: Mapping[str, str]


def make_slots(parallel: int, devices: str | Sequence[int | str] | None) -> tuple[Slot, ...]:
    """One slot per entry of ``devices`` (a GPU's number, or ``"0,1"`` for two GPUs; ``"auto"`` for
    all GPUs of the machine), else ``parallel`` slots that share the CPU cores.

    Raises UserError if both are given or there is no GPU.
    """
    if parallel < 1:
        raise UserError(f"hydra.launcher.parallel={parallel}: give 1 or more")
    if devices is None:
        return (Slot(env=_threads(parallel)),) * parallel
    if parallel != 1:
        raise UserError("hydra.launcher: give devices (one job each) or parallel, not both")
    if isinstance(devices, str):
        if devices != "auto":
            raise UserError(f"hydra.launcher.devices={devices}: give a list such as [0,1], or auto")
        devices = range(_count_gpus())
    if not devices:
        raise UserError("hydra.launcher.devices: there is no GPU: use hydra.launcher.parallel=N")
    return tuple(Slot(env={"CUDA_VISIBLE_DEVICES": str(device)}) for device in devices)


def _threads(parallel: int) -> dict[str, str]:
    """Limits the threads of parallel jobs, each of which would use all cores."""
    if parallel == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))}


def _count_gpus() -> int:
    import torch  # slow, and only needed here

    return torch.cuda.device_count()


class LocalRunner:
    """Runs jobs in order, each in the first free slot."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = tuple(slots)

    def __call__(self, starts: Sequence[Start], done: Done) -> None:
        """Run all jobs. SIGTERM is passed on to running jobs; Ctrl-C reaches them directly. In both
        cases this waits until they have saved and ended.
        """
        before = signal.signal(signal.SIGTERM, _leave)
        running: dict[int, tuple[subprocess.Popen[bytes], Slot]] = {}
        try:
            self._work(starts, done, running)
        except KeyboardInterrupt:
            log.info("the sweep stops: the same command resumes it")
            raise
        except BaseException:
            for process, _ in running.values():
                process.terminate()
            raise
        finally:
            for process, _ in running.values():
                process.wait()
            signal.signal(signal.SIGTERM, before)

    def _work(
        self,
        starts: Sequence[Start],
        done: Done,
        running: dict[int, tuple[subprocess.Popen[bytes], Slot]],
    ) -> None:
        waiting, free = deque(enumerate(starts)), deque(self.slots)
        alone = len(self.slots) == 1
        while waiting or running:
            while waiting and free:
                index, start = waiting.popleft()
                where = "" if alone else f", its output in {RunFolder(start.folder).console}"
                log.info("%s starts%s", start.folder, where)
                try:
                    running[index] = (begin(start, free[0].env, console=alone), free[0])
                except UserError as error:
                    log.error("error: %s", error)
                    done(index, BUSY)
                else:
                    free.popleft()
            for index, (process, slot) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[index]
                    free.append(slot)
                    done(index, code)
            if running:
                time.sleep(POLL_S)


def _leave(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
