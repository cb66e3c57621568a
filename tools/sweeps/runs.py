"""What a run's folder says: config.yaml, metrics.csv, metrics.json and, in a sweep, job.json."""

from __future__ import annotations

import csv
import re
import reprlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from codetr.checkpoints.plain import plain_text
from codetr.errors import UserError
from codetr.json_text import parse_json
from codetr.run_folder import RunFolder
from codetr.training.sweeps.jobs import read_job

FOREIGN = {".hydra", "wandb", "submitit"}
"""Folders inside a run that are not runs, though they may hold files of these names."""

_LARGEST = 2**63
"""Above all numbers of a run."""
Curve = tuple[tuple[int, float], ...]
"""(optimiser steps taken, value) pairs."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run. ``swept`` is what a sweep varied, without the ``seed``; ``heads`` the auxiliary
    heads; ``overrides`` what its command said; ``metrics`` the best validation's, None where the
    run is not finished; ``curves`` all numbers of metrics.csv.
    """

    folder: Path
    swept: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    heads: tuple[str, ...] | None = None
    overrides: tuple[str, ...] = ()
    metrics: Mapping[str, Any] | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)

    def number(self, name: str) -> float | None:
        """A number of metrics.json; None where it is not known. Raises UserError for anything
        else.
        """
        value = (self.metrics or {}).get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not abs(value) < _LARGEST:
            raise UserError(
                f"{RunFolder(self.folder).metrics}: {name} is {reprlib.repr(value)}, which is no "
                "number: run that job again"
            )
        return float(value)


def read_runs(folder: Path) -> list[Run]:
    """All runs below ``folder``, in the order of their jobs. Raises UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: give a sweep's, such as runs/sweeps/NAME")
    names = RunFolder(folder)
    files = [*folder.rglob(names.config.name), *folder.rglob(names.job.name)]
    own = {f.parent for f in files if not FOREIGN & set(f.relative_to(folder).parts)}
    if not own:
        raise UserError(f"{folder}: holds no run: give a sweep's folder, such as runs/sweeps/NAME")
    return [read_run(path) for path in sorted(own, key=_natural)]


def _natural(path: Path) -> list[tuple[int, str]]:
    """2 before 10."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def read_run(folder: Path) -> Run:
    """The run in ``folder``. Raises UserError for files that are not a run's."""
    files = RunFolder(folder)
    job = read_job(files.job) or {}
    config = _read_config(files.config)
    swept = job.get("swept") or config.get("swept") or {}
    own = config.get("aux_heads") or {}
    for name, value, kind in (("swept", swept, dict), ("aux_heads", own, (dict, list))):
        if not isinstance(value, kind) or not all(isinstance(key, str) for key in value):
            raise UserError(f"{files.config}: its {name} is not of a run: run that job again")
    if any(type(v) in (int, float) and not abs(v) < _LARGEST for v in swept.values()):
        raise UserError(f"{files.config}: its swept is no number of a run: run that job again")
    swept = dict(swept)
    seed = swept.pop("seed", config.get("seed"))
    if seed is not None and type(seed) is not int:
        raise UserError(
            f"{files.config}: its seed is {reprlib.repr(seed)}, which is no whole number: run that "
            "job again"
        )
    heads = tuple(own) if "aux_heads" in config else _heads_told(swept)
    return Run(
        folder=folder,
        swept=swept,
        seed=seed,
        heads=heads,
        overrides=tuple(job.get("overrides", ())),
        metrics=_read_json(files.metrics),
        curves=read_curves(files.log),
    )


def _heads_told(swept: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The heads of a job that has not written its configuration; None if its command says more than
    a list of them.
    """
    told = {key: str(value) for key, value in swept.items() if key.partition("@")[0] == "aux_heads"}
    if told.keys() != {"aux_heads"} or not re.fullmatch(r"\[(\w+(,\w+)*)?\]", told["aux_heads"]):
        return None
    return tuple(re.findall(r"\w+", told["aux_heads"]))


def read_curves(path: Path) -> dict[str, Curve]:
    """The columns of a metrics.csv; empty where there is none (yet)."""
    if not path.is_file():
        return {}
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    number = 1
    with path.open(newline="") as file:
        try:
            for number, row in enumerate(csv.DictReader(file), 2):  # noqa: B007
                step = int(row.pop("step")) + 1
                for name, text in row.items():
                    if text:
                        curves[name].append((step, float(text)))
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise UserError(f"{path}: line {number} is not of a metrics.csv") from error
    return {name: tuple(points) for name, points in curves.items()}


def added(curves: Sequence[Curve]) -> Curve:
    """Sum of curves at the steps that they share."""
    tables = [dict(curve) for curve in curves]
    common = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return tuple((step, sum(table[step] for table in tables)) for step in common)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content = plain_text(parse_json(path.read_bytes(), str(path)), str(path), "content")
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not of a run: give a sweep's folder")
    return content


def _read_config(path: Path) -> dict[str, Any]:
    """Nothing in it is resolved: a folder may come from a stranger."""
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_bytes())
    except Exception as error:  # whatever YAML raises on foreign files
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: is not the configuration of a run ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not the configuration of a run: give a sweep's folder")
    return {str(key): plain_text(value, str(path), "record") for key, value in content.items()}
