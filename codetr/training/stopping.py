"""Stopping a run by SIGTERM or Ctrl-C where it can be resumed."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from codetr.conf_folder import options_given

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """The run was stopped by a signal. Like KeyboardInterrupt it is not an Exception, so that error
    handlers do not catch it.

    ``saved``: what was saved, such as ``kept at step 120 in last.ckpt``; None if nothing was.
    """

    def __init__(self, signum: int, saved: str | None = None) -> None:
        self.signum, self.saved = signal.Signals(signum), saved
        self.next_command: str | None = None
        self.quiet = False  # True where another process of the run reports it
        super().__init__(f"stopped by {self.signum.name}")

    @property
    def exit_code(self) -> int:
        """The shell's status of a process ended by the signal: SIGTERM 143, SIGINT 130."""
        return 128 + self.signum

    def line(self) -> str:
        """The message for the user."""
        text = f"{self}{f', {self.saved}' if self.saved else ' before its first checkpoint'}"
        return f"{text}: continue with `{self.next_command}`" if self.next_command else text


class StopSignals:
    """Context in which SIGTERM and Ctrl-C raise ``Stopped`` at once. With ``deferred``, the signal
    is only stored in ``signum`` for ``SafePoints``, so that no optimiser step is left half done; a
    second Ctrl-C then raises KeyboardInterrupt.

    ``forward`` sends SIGTERM to the processes that this one has started.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False
        self.forward: Callable[[signal.Signals], None] | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        global _current
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        _current = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _current
        _current = None
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
        if self.signum is not None and isinstance(error, KeyboardInterrupt | SystemExit):
            raise Stopped(self.signum) from None

    def install(self) -> None:
        """Install the handlers, replacing others. Does nothing outside of the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again = self.signum is not None
        if not again:
            self.signum = signum
            if self.forward is not None:
                self.forward(signal.SIGTERM)
        if not self.deferred:
            raise Stopped(signum)
        if again and signum == signal.SIGINT:
            raise KeyboardInterrupt


_current: StopSignals | None = None


def current() -> StopSignals | None:
    """The active context, if any."""
    return _current


def next_command(cfg: DictConfig, given: Sequence[str]) -> str:
    """The command, or the Python call, that resumes the run of ``cfg``, which was composed with the
    overrides ``given``. It names the run, since the default name has the time in it.
    """
    kept = [o for o in given if not o.startswith(("ckpt_path=", "name="))]
    overrides = [*kept, f"name={cfg.name}", "ckpt_path=last"]
    if not HydraConfig.initialized():
        return f"codetr.train({overrides})"
    hydra: Any = HydraConfig.get()
    script = sys.argv[0]
    program = [Path(sys.executable).name, script] if script.endswith(".py") else [Path(script).name]
    own = [*options_given(hydra), *hydra.overrides.hydra]
    options = [word for word in own if word not in ("--config-name=train", "hydra.mode=RUN")]
    return shlex.join([*program, *options, *overrides])
