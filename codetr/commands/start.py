"""How every command starts: its words become a configuration, and mistakes are told in one line."""

from __future__ import annotations

import argparse
import os
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
"""What a command does with its configuration and the overrides that this was made with. It imports
what takes time itself: hydra has then answered ``--help`` and typos.
"""


def start(
    name: str,
    task: Task,
    of_record: Iterable[str] = (),
    choose: Callable[[Sequence[str]], list[str]] = list,
    sweeps: bool = True,
) -> None:
    """Compose ``name`` of conf/ from the command line, and do ``task``.

    Any file name is read as it was typed. Settings of the groups ``of_record`` may be those of a
    checkpoint alone. ``choose`` replaces overrides by others. ``sweeps``: whether there is ``-m``.
    Exits with one line and status 2 for whatever a user can correct.
    """
    parser = utils.get_args_parser()
    with one_line_errors():
        line = _parsed(parser, name, sys.argv[1:], sweeps)
        require_present_keys(line.overrides)
    line.overrides = choose(adding(readable(line.overrides, line.multirun), of_record))
    print_any_name()

    @wraps(task)  # whose module names hydra's log
    def run(cfg: DictConfig) -> object:
        with one_line_errors():
            return task(cfg, HydraConfig.get().overrides.task)

    with closed_stdout_in_silence(), _mistakes_in_one_line(name, line.overrides):
        version.setbase("1.3")
        utils._run_hydra(line, parser, run, config_path=str(conf_folder()), config_name=name)


def _parsed(
    parser: argparse.ArgumentParser, command: str, words: Sequence[str], sweeps: bool
) -> argparse.Namespace:
    """The command line, with Hydra's flags at any place in it.

    Raises UserError for a setting that is written as a flag, which Hydra would take for one of its
    own that begins so; for ``-m`` where there are no sweeps; for the flag that reads a pickle; and
    for a folder of ``--config-dir`` that does not exist or flags that exclude each other, of which
    Hydra makes exceptions.
    """
    parser.allow_abbrev = False
    line, unknown = parser.parse_known_intermixed_args(words)
    with_spaces = (word for word in line.overrides if word.startswith("-"))  # argparse lets them be
    for word in (*unknown, *with_spaces):
        flag, _, value = word.partition("=")
        setting = f"{flag.lstrip('-').replace('-', '_')}={value or 'VALUE'}"
        raise UserError(
            f"{word}: settings have no dashes: write {setting}; --help lists what there is"
        )
    if line.multirun and not sweeps:
        raise UserError(f"--multirun: {command} makes no sweeps: give one value of each setting")
    if line.experimental_rerun is not None:
        raise UserError(
            "--experimental-rerun: reads a pickle, which may run code: give the overrides again"
        )
    if line.config_dir is not None and not Path(line.config_dir).is_dir():
        raise UserError(f"--config-dir {line.config_dir}: is no folder: give one of option files")
    exclusive = ("run", "multirun", "cfg", "info", "shell_completion")
    both = [f"--{flag.replace('_', '-')}" for flag in exclusive if getattr(line, flag)]
    if len(both) > 1:
        raise UserError(f"{' '.join(both)}: exclude each other: give one of them")
    return line


@contextmanager
def _mistakes_in_one_line(command: str, arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra say in one line, with the nearest name, what it does not find, and which
    file of the run folder it cannot write; and exit with status 2.
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
    """What the system said when Hydra made a run's folder and files; ``logging`` wraps that."""
    cause = error.__cause__ if isinstance(error, ValueError) else error
    return cause if isinstance(cause, OSError) and cause.filename is not None else None
