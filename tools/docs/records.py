"""Runs of a sweep in a few lines of JSON each: what a table and a figure of AP need, without the
run's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr.errors import UserError
from codetr.json_text import parse_json
from tools.sweeps.runs import Run
from tools.sweeps.variants import label_of

CURVE = "val/AP"
"""The only curve that is kept."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A run, with the ``commit`` of the code that made it and the ``hardware``; neither is known of
    a run that is not finished.
    """

    run: Run
    commit: str | None = None
    hardware: str | None = None

    @property
    def key(self) -> tuple[str, int | None]:
        """What no two runs of a record have in common."""
        return label_of(self.run), self.run.seed


def merge(earlier: Sequence[Kept], later: Sequence[Kept]) -> tuple[Kept, ...]:
    """Both, in the order of ``earlier``; of a run that is in both, the finished one, or else the
    later one. A run whose heads were not known yet may have another label now.
    """
    again = [(kept.run.swept, kept.run.seed) for kept in later]
    found = {
        kept.key: kept
        for kept in earlier
        if kept.run.heads is not None or (kept.run.swept, kept.run.seed) not in again
    }
    for kept in later:
        before = found.get(kept.key)
        if before is None or kept.run.metrics is not None or before.run.metrics is None:
            found[kept.key] = kept
    return tuple(found.values())


def write_record(kept: Sequence[Kept], path: Path) -> None:
    """One line per run, so that a later run is a line of a diff."""
    lines = ",\n".join("  " + json.dumps(_as_json(one)) for one in kept)
    path.write_text(f'{{"runs": [\n{lines}\n]}}\n', encoding="utf-8")


def read_record(path: Path) -> tuple[Kept, ...]:
    """What ``write_record`` has written. Raises UserError for another file."""
    try:
        content = parse_json(path.read_bytes(), str(path))
        return tuple(_from_json(run) for run in content["runs"])
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is no record of a sweep ({error}): write it again with scripts/study.py"
        ) from None


def _as_json(kept: Kept) -> dict[str, Any]:
    run = kept.run
    curve = () if run.metrics is None else run.curves.get(CURVE, ())
    return {
        "swept": dict(run.swept),
        "seed": run.seed,
        "heads": None if run.heads is None else list(run.heads),
        "overrides": list(run.overrides),
        "metrics": None if run.metrics is None else _rounded(run.metrics),
        CURVE: [[step, round(value, 4)] for step, value in curve],
        "commit": kept.commit,
        "hardware": kept.hardware,
    }


def _rounded(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in metrics.items()}


def _from_json(content: Mapping[str, Any]) -> Kept:
    curve = tuple((int(step), float(value)) for step, value in content[CURVE])
    run = Run(
        folder=Path(),
        swept=dict(content["swept"]),
        seed=content["seed"],
        heads=None if content["heads"] is None else tuple(content["heads"]),
        overrides=tuple(content["overrides"]),
        metrics=content["metrics"],
        curves={CURVE: curve} if curve else {},
    )
    return Kept(run=run, commit=content["commit"], hardware=content["hardware"])
