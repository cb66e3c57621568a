"""Errors that a user can correct, printed as one line."""

from __future__ import annotations

import errno
import io
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from codetr.errors import user_error
from codetr.settings.check import require_setting
from codetr.training.stopping import Stopped

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Environment variable: with 1, errors are shown with their tracebacks."""
_STDOUT = 1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_KEY = re.compile(r"^full_key: (?P<key>\S+)$", re.MULTILINE)
_CALLED = re.compile(r"'(?P<name>[\w.]+)'")
_GIVEN = {"data.root": "FOLDER", "checkpoint": "FILE", "source": "FILE or FOLDER", "out": "FILE"}
"""Placeholders for the values of required keys."""


def print_any_name() -> None:
    """Escape bytes of file names that are not UTF-8 in stdout (``\\udcff``), as stderr does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error that a user can correct as one line on stderr and exit with status 2. Other
    errors propagate, and all do if ``FULL_ERROR`` is set. A run stopped by a signal prints one line
    and exits with the status of that signal.
    """
    try:
        with closed_stdout_in_silence():
            yield
    except Stopped as stopped:
        if not stopped.quiet:
            print(stopped.line(), file=sys.stderr, flush=True)
        raise SystemExit(stopped.exit_code) from None
    except Exception as error:
        text = one_line(error)
        if text is None or os.environ.get(FULL_ERROR) == "1":
            raise
        print(f"error: {text}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


@contextmanager
def closed_stdout_in_silence() -> Iterator[None]:
    """Exit with the status of a process that SIGPIPE ended where nobody reads stdout any more, as
    in ``codetr-train --help | head``. Other broken pipes propagate.
    """
    try:
        yield
        print(end="", flush=True)  # sys.stdout is None if the process started without one
    except BrokenPipeError:
        state = select.poll()
        state.register(_STDOUT, 0)
        closed = select.POLLERR | select.POLLHUP  # of a pipe, of a socket
        if not any(event & closed for _, event in state.poll(0)):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)  # for the flush at exit
        raise SystemExit(128 + signal.SIGPIPE) from None


def one_line(error: BaseException) -> str | None:
    """The message for an error that a user can correct: a UserError (also as a cause), an object
    that cannot be built, a wrong interpolation, a wrong Trainer setting, or an OSError of a file.
    None for any other error.
    """
    found = user_error(error)
    if found is not None:
        return str(found)
    if isinstance(error, InstantiationException):
        return _not_built(error)
    if isinstance(error, MissingMandatoryValue):
        key = str(error.full_key)
        return f"{key} is not set: give {key}={_GIVEN.get(key, 'VALUE')}"
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'configuration'}: {_joined(str(error.msg or error))}"
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        where = f"{error.filename}: " if error.filename else ""
        return (
            f"{where}{error.strerror}, so that the last file is not whole: make room, and give the "
            "same command again, training with ckpt_path=last"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}: check its name, folder and permissions"
    if type(error).__name__ == "MisconfigurationException":  # by name: Lightning is slow to import
        return _joined(str(error))
    return None


def _not_built(error: InstantiationException) -> str:
    text = str(error)
    key, called = _FULL_KEY.search(text), _CALLED.search(text)
    where = key["key"] if key else called["name"] if called else "configuration"
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = text.partition("full_key:")[0] if cause is error else f"{cause}"
    name = "" if cause is error else f"{type(cause).__name__}: "
    return (
        f"{where}: cannot be built ({name}{_joined(reason)}): correct its settings; {FULL_ERROR}=1 "
        "in the environment shows the traceback"
    )


def _joined(text: str) -> str:
    return " ".join(text.split())


class RequireFolder(Callback):
    """Checks, before Hydra creates the folder of a run, that ``name`` is a folder name and that no
    required key is missing.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a run."""
        with one_line_errors():
            require_setting("name", config.name)
            for key in _GIVEN:
                OmegaConf.select(config, key, throw_on_missing=True)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a sweep, whose jobs may have required keys of their own."""
        with one_line_errors():
            require_setting("name", config.name)
