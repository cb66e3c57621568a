"""Entry point of all commands: composes the configuration and reports user errors in one line."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal import utils
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, OverrideParseException
from omegaconf import DictConfig

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.moved_keys import require_present_keys
from codetr.overrides import adding, readable
from codetr.training.error_lines import (
    FULL_ERROR,
    closed_stdout_in_silence,
    one_line,
    one_line_errors,
    print_any_name,
)
from codetr.typos import explain

Task = Callable[[DictConfig, Sequence[str]], object]
"""A command's function of its configuration and the overrides that this was composed with. It does
slow imports itself, so that ``--help`` and typos are answered at once.
"""


def start(
    name: str,
    task: Task,
    record_groups: Iterable[str] = (),
    choose: Callable[[Sequence[str]], list[str]] = list,
    sweeps: bool = True,
) -> None:
    """Compose ``name`` of conf/ from the command line and run ``task``.

    File names need no quoting for Hydra. Settings in the ``record_groups`` may exist only in a
    checkpoint's record. ``choose`` maps the overrides to those that are used. ``sweeps``: whether
    ``-m`` is allowed. For an error that the user can correct, prints one line and exits with
    status 2.
    """
    parser = utils.get_args_parser()
    with one_line_errors():
        line = _parsed(parser, name, sys.argv[1:], sweeps)
        require_present_keys(line.overrides)
    line.overrides = choose(adding(readable(line.overrides, line.multirun), record_groups))
    print_any_name()

    @wraps(task)  # Hydra names its log file after the task's module
    def run(cfg: DictConfig) -> object:
        with one_line_errors():
            return task(cfg, HydraConfig.get().overrides.task)

    with closed_stdout_in_silence(), _mistakes_in_one_line(name, line.overrides):
        version.setbase("1.3")
        utils._run_hydra(line, parser, run, config_path=str(conf_folder()), config_name=name)


def _parsed(
    parser: argparse.ArgumentParser, command: str, words: Sequence[str], sweeps: bool
) -> argparse.Namespace:
    """The parsed command line; Hydra's flags may be anywhere in it.

    Raises UserError for a setting written as a flag, which Hydra could take for an abbreviation of
    one of its own; for ``-m`` where sweeps are not supported; for the flag that reads a pickle; and
    for a ``--config-dir`` that does not exist and for mutually exclusive flags, for which Hydra
    would print a traceback; and for flags of ``--cfg`` without it.
    """
    parser.allow_abbrev = False
    line, unknown = parser.parse_known_intermixed_args(words)
    # argparse takes a word with a space for an argument, even after dashes
    with_spaces = (word for word in line.overrides if word.startswith("-"))
    for word in (*unknown, *with_spaces):
        flag, _, value = word.partition("=")
        setting = f"{flag.lstrip('-').replace('-', '_')}={value or 'VALUE'}"
        raise UserError(
            f"{word}: settings have no dashes: write {setting}; --help lists all of them"
        )
    if line.multirun and not sweeps:
        raise UserError(
            f"--multirun: {command} does not support sweeps: give one value of each setting"
        )
    if line.experimental_rerun is not None:
        raise UserError(
            "--experimental-rerun: reads a pickle, which may run code: give the overrides again"
        )
    if line.config_dir is not None and not Path(line.config_dir).is_dir():
        raise UserError(
            f"--config-dir {line.config_dir}: is not a folder: give a folder of option files"
        )
    exclusive = ("run", "multirun", "cfg", "info", "shell_completion")
    both = [f"--{flag.replace('_', '-')}" for flag in exclusive if getattr(line, flag)]
    if len(both) > 1:
        raise UserError(f"{' '.join(both)}: exclude each other: give one of them")
    of_cfg = {"--resolve": line.resolve and not line.help, "--package": line.package}
    ignored = [flag for flag, given in of_cfg.items() if given and line.cfg is None]
    if ignored:
        raise UserError(f"{' '.join(ignored)}: has no effect without --cfg: add --cfg job")
    return line


@contextmanager
def _mistakes_in_one_line(command: str, arguments: Sequence[str]) -> Iterator[None]:
    """Print Hydra's errors in one line and exit with status 2: for an unknown name with the most
    similar one, for a run folder that cannot be written with the file.
    """
    report = utils.run_and_report

    def run_and_report(func: Any) -> Any:
        def explained() -> Any:
            try:
                with closed_stdout_in_silence():
                    return func()
            except (ConfigCompositionException, OverrideParseException) as error:
                if os.environ.get(FULL_ERROR) == "1":
                    raise
                text = explain(error, arguments, command)
            except KeyboardInterrupt:
                print("stopped by SIGINT", file=sys.stderr, flush=True)
                raise SystemExit(128 + signal.SIGINT) from None
            except Exception as error:
                refused = _refusal(error)
                if refused is None or os.environ.get(FULL_ERROR) == "1":
                    raise
                text = str(one_line(refused))
            print(f"error: {text}", file=sys.stderr, flush=True)
            raise SystemExit(2)

        return report(explained)

    utils.run_and_report = run_and_report
    try:
        yield
    finally:
        utils.run_and_report = report


def _refusal(error: Exception) -> OSError | None:
    """The OSError of creating the run folder or its log file, which ``logging`` wraps."""
    cause = error.__cause__ if isinstance(error, ValueError) else error
    return cause if isinstance(cause, OSError) and cause.filename is not None else None
