"""Which check a folder of recorded numbers takes, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from codetr.errors import UserError
from tools.parity.components import COMPONENTS
from tools.parity.heads import check_head
from tools.parity.models import check_model, not_compared
from tools.parity.ms_detr import check_ms_detr
from tools.parity.recorded import ARRAYS, INFO, Recorded
from tools.parity.refine_mask import check_refine_mask, is_refine_mask
from tools.parity.students import check_student
from tools.parity.table import Row
from tools.parity.teach_detr import check_teach_detr
from tools.parity.tokens import check_tokens

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
LOSS = re.compile(r"loss|total")
DRAWS = "dn_draw_"
"""Recorded random numbers, which our run was given."""
HEAD_ALONE = {"head_config", "roi_head"}
"""Keys of info.json that only the records of auxiliary heads alone have."""
FAMILIES: dict[str, Callable[[Path], list[Row]]] = {
    "ms_detr": check_ms_detr,
    "h_deformable": check_teach_detr,
    "teach_h_deformable": check_teach_detr,
    **dict.fromkeys(("yolos", "vidt"), check_tokens),
    **dict.fromkeys(("conditional_detr", "dab_detr", "dn_detr", "dino"), check_student),
}
"""Checks of detectors of other repositories, by how the experiment in info.json begins."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """``rows`` of one folder; ``untouched`` names recorded arrays that no row is about."""

    title: str
    rows: tuple[Row, ...]
    untouched: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Everything holds, and there was something to compare."""
        return bool(self.rows) and all(row.ok for row in self.rows)


def check(folder: Path, precision: str | None = None) -> Report:
    """Run ours against ``folder``: a part alone is told by the folder's name, a head alone and a
    detector by the configuration in its info.json.

    ``precision`` is float64 or float32; None: the one of the recorded run. Parts alone and
    detectors of other repositories run in the precisions that their tolerances are for. Raises
    UserError if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one with recorded numbers (io.npz)")
    name = folder.resolve().name
    if name in COMPONENTS:
        return Report(title=name, rows=tuple(COMPONENTS[name](folder)))
    experiment = _experiment(folder)
    for family, check_family in FAMILIES.items():
        if experiment.startswith(family):
            rows = check_family(folder)
            title = f"{name}: {experiment}, float64"
            return Report(title=title, rows=tuple(rows), untouched=_untouched(folder, rows))
    recorded = Recorded.load(folder)
    if is_refine_mask(recorded):
        rows = check_refine_mask(recorded)
        rest = tuple(not_compared(recorded, rows))
        return Report(title=f"heads/{name}", rows=tuple(rows), untouched=rest)
    if HEAD_ALONE & set(recorded.info):
        return Report(title=f"heads/{name}", rows=tuple(check_head(folder)))
    chosen = precision or recorded.info.get("precision", "float64")
    rows = check_model(recorded, PRECISIONS[chosen])
    untouched = not_compared(recorded, rows)
    title = f"{name}: {recorded.experiment}, {chosen}"
    return Report(title=title, rows=tuple(rows), untouched=tuple(untouched))


def _experiment(folder: Path) -> str:
    """Our experiment, where the folder names it; empty where it names an official file instead."""
    path = folder / INFO
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return str(content.get("experiment", ""))


def _untouched(folder: Path, rows: Sequence[Row]) -> tuple[str, ...]:
    compared = {row.quantity for row in rows}
    with np.load(folder / ARRAYS) as stored:
        names = [name for name in stored.files if not name.startswith(DRAWS)]
    return tuple(name for name in names if name not in compared)


def markdown(reports: Sequence[Report]) -> str:
    """A summary of all reports, then each one's table, folded."""
    lines = [
        "| record | quantities | hold | largest relative difference: losses | gradient norms |",
        "| --- | --- | --- | --- | --- |",
    ]
    for report in reports:
        losses = [row for row in report.rows if LOSS.search(row.quantity)]
        gradients = [row for row in report.rows if row.quantity.startswith("grad")]
        held = sum(row.ok for row in report.rows)
        lines.append(
            f"| {report.title} | {len(report.rows)} | {held} | {_largest(losses)} | "
            f"{_largest(gradients)} |"
        )
    for report in reports:
        lines += ["", f"<details markdown><summary>{report.title}</summary>", ""]
        lines += ["| quantity | absolute | relative | tolerance | ok |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        lines += [
            f"| {r.quantity} | {r.absolute:.1e} | {r.relative:.1e} | {r.tolerance} | "
            f"{'yes' if r.ok else 'NO'} |"
            for r in report.rows
        ]
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def _largest(rows: Sequence[Row]) -> str:
    return f"{max(row.relative for row in rows):.0e}" if rows else ""
