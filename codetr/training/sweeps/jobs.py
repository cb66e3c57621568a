"""The jobs of a sweep: command, folder and recorded state of each."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from codetr.checkpoints.plain import plain_text
from codetr.errors import UserError
from codetr.json_text import parse_json
from codetr.run_folder import RunFolder
from codetr.writing import write_text

Scalar = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Job:
    """Job ``number`` of a sweep, whose run folder ``folder`` is ``<sweep folder>/<number>``.

    ``overrides``: all of its overrides; ``swept``: those that differ between jobs.
    """

    number: int
    folder: Path
    overrides: tuple[str, ...]
    swept: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """A hash of the overrides."""
        return hashlib.sha256("\n".join(self.overrides).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """The swept overrides with short keys: ``lambda_1=0.5 seed=1``."""
        values = swept_values(self.swept)
        return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())

    @property
    def run(self) -> RunFolder:
        """The files of the job's run."""
        return RunFolder(self.folder)

    def finished(self) -> bool:
        """Whether a job with the same overrides has finished in this folder."""
        state = read_job(self.run.job) or {}
        same = state.get("fingerprint") == self.fingerprint
        return same and state.get("finished") is True and self.run.metrics.is_file()

    def note(self, *, finished: bool) -> None:
        """Write the state file atomically."""
        content = {
            "fingerprint": self.fingerprint,
            "overrides": list(self.overrides),
            "swept": swept_values(self.swept),
            "finished": finished,
        }
        write_text(self.run.job, json.dumps(content, indent=2) + "\n")

    def command(self, script: Path, options: Sequence[str]) -> list[str]:
        """The command of the job, with Hydra's ``options`` but without ``-m``, since DDP repeats it
        for its processes. It resumes from the job's last checkpoint, if there is one.
        """
        resume = self.run.last.is_file() and not any(
            override.startswith("ckpt_path=") for override in self.overrides
        )
        return [
            sys.executable,
            str(script),
            *options,
            *self.overrides,
            f"name={self.folder.parent.name}_{self.number}",
            f"+swept={_literal(swept_values(self.swept))}",
            *(["ckpt_path=last"] if resume else []),
            f"hydra.run.dir='{self.folder}'",
        ]


def plan(
    job_overrides: Sequence[Sequence[str]],
    first: int,
    sweep_folder: Path,
    given: Iterable[str] = (),
) -> list[Job]:
    """The jobs of a sweep, numbered from ``first``. An override of ``name`` names the sweep, not
    its jobs. ``swept`` are the overrides that not all jobs share; for a single job, as in a
    sequential search, those that were not ``given`` with the command.
    """
    own = [tuple(o for o in job if not o.startswith("name=")) for job in job_overrides]
    common = set.intersection(*map(set, own)) if len(own) > 1 else set(given)
    return [
        Job(
            number=number,
            folder=sweep_folder / str(number),
            overrides=overrides,
            swept=tuple(o for o in overrides if o not in common),
        )
        for number, overrides in enumerate(own, first)
    ]


def earlier(sweep_folder: Path, first: int) -> list[Job]:
    """The jobs before number ``first``, as recorded in their folders."""
    found = []
    for number in range(first):
        folder = sweep_folder / str(number)
        state = read_job(RunFolder(folder).job)
        if state is not None:
            swept = (f"{key}={_quoted(value)}" for key, value in state.get("swept", {}).items())
            overrides = tuple(state.get("overrides", ()))
            found.append(Job(number=number, folder=folder, overrides=overrides, swept=tuple(swept)))
    return found


def require_own_folders(jobs: Iterable[Job]) -> None:
    """Raise UserError if a folder holds the run of another job, which would be overwritten."""
    for job in jobs:
        state = read_job(job.run.job)
        if state is not None and state.get("fingerprint") != job.fingerprint:
            raise UserError(
                f"{job.folder} holds another job ({shlex.join(state.get('overrides', []))}): give "
                "the sweep another name=NAME, or delete that folder"
            )


def swept_values(overrides: Iterable[str]) -> dict[str, Scalar]:
    """Overrides as values by key: items of a dictionary separately, lists as they were written.

    ``["seed=1", "heads=[atss]", "a={b:2}"]`` is ``{"seed": 1, "heads": "[atss]", "a.b": 2}``.
    """
    values: dict[str, Scalar] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.get_key_element().lstrip("+"), override.value()
        if isinstance(value, dict):
            values |= {f"{key}.{k}": _scalar(v) for k, v in value.items()}
        elif isinstance(value, list):
            values[key] = override.get_value_element_as_str()
        else:
            values[key] = _scalar(value)
    return values


def _scalar(value: Any) -> Scalar:
    return value if isinstance(value, bool | int | float) else str(value)


def _literal(values: dict[str, Scalar]) -> str:
    """A dictionary in Hydra's override grammar."""
    return "{" + ",".join(f"{key}:{_quoted(value)}" for key, value in values.items()) + "}"


def _quoted(value: Scalar) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", r"\'") + "'"
    return str(value).lower()


def read_job(path: Path) -> dict[str, Any] | None:
    """The state file of a job; None if there is none. Interpolations in it are not resolved.

    Raises UserError for a file that is not the state of a job.
    """
    if not path.is_file():
        return None
    content = plain_text(parse_json(path.read_bytes(), str(path)), str(path), "state")
    state = content if isinstance(content, dict) else {"overrides": None}
    overrides, swept = state.get("overrides", []), state.get("swept", {})
    lists = isinstance(overrides, list) and all(isinstance(o, str) for o in overrides)
    if not lists or not isinstance(swept, dict) or not all(map(_is_swept, swept.items())):
        raise UserError(f"{path}: is not the state of a job: delete it to repeat that job")
    return state


def _is_swept(item: tuple[Any, Any]) -> bool:
    key, value = item
    if not isinstance(key, str) or not isinstance(value, str | int | float | bool):
        return False
    try:
        return len(swept_values([f"{key}={_quoted(value)}"])) == 1
    except OverrideParseException:
        return False
