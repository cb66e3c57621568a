"""Choose the check for a folder of recorded numbers, run it, and report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from codetr.errors import UserError
from tools.parity.co_detr import co_detr
from tools.parity.components import COMPONENTS
from tools.parity.detector import Family, check_detector
from tools.parity.detr import H_DETR, STUDENTS, TOKENS
from tools.parity.heads import check_head
from tools.parity.recorded import ARRAYS, Recorded, read_arrays
from tools.parity.table import Row

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
LOSS = re.compile(r"loss|total")
GIVEN = r"_paste_(index|window)$|^dn_draw_|^target_ext_"
"""Recorded arrays that are inputs of a check of a head or detector, not results."""
HEAD_ALONE = {"head_config", "roi_head", "num_candidates"}
"""Keys of info.json that only records of a single head or of the mask branch alone have."""
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("ms_detr", "h_deformable", "teach_h_deformable"), H_DETR),
    **dict.fromkeys(("yolos", "vidt"), TOKENS),
    **dict.fromkeys(("conditional_detr", "dab_detr", "dn_detr", "dino"), STUDENTS),
}
"""Detectors of other repositories, by the prefix of the experiment in info.json."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """``rows`` of one folder; ``untouched`` are recorded arrays without a row, neither inputs nor
    left out by a rule.
    """

    title: str
    rows: tuple[Row, ...]
    untouched: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything recorded is compared, there is something, and all of it holds."""
        return bool(self.rows) and all(row.ok for row in self.rows) and not self.untouched


def check(folder: Path, precision: str | None = None) -> Report:
    """Compare ours with the record in ``folder``. Components are identified by the folder's name,
    single heads and detectors by the configuration in info.json.

    ``precision`` is float64 or float32; None: that of the recorded run. It has no effect on
    components and on detectors of other repositories, which run in the precision that their
    tolerances are for. Raises UserError if there is no such folder, or if it is no known record.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one with recorded numbers (io.npz)")
    name = folder.resolve().name
    if name in COMPONENTS:
        component, given = COMPONENTS[name]
        return _report(name, read_arrays(folder / ARRAYS), component(folder), given)
    recorded = Recorded.load(folder)
    if recorded.of_co_detr and HEAD_ALONE & set(recorded.info):
        return _report(f"heads/{name}", recorded.arrays, check_head(recorded))
    chosen = "float64"
    if recorded.of_co_detr:
        chosen = precision or recorded.info.get("precision", chosen)
    dtype = PRECISIONS[chosen]
    family = co_detr(dtype) if recorded.of_co_detr else _family(recorded)
    title = f"{name}: {recorded.experiment}, {chosen}"
    rows, left_out = check_detector(recorded, family, dtype)
    return _report(title, recorded.arrays, rows, left_out=left_out)


def _family(recorded: Recorded) -> Family:
    for beginning, family in FAMILIES.items():
        if recorded.experiment.startswith(beginning):
            return family
    raise UserError(
        f"{recorded.folder}/info.json: experiment {recorded.experiment} is none whose records are "
        f"known: give one that begins with {', '.join(FAMILIES)}"
    )


def _report(
    title: str,
    arrays: Iterable[str],
    rows: Sequence[Row],
    given: str = GIVEN,
    left_out: Sequence[Row] = (),
) -> Report:
    known = {row.recorded for row in (*rows, *left_out)}
    rest = (name for name in arrays if name not in known and not re.search(given, name))
    return Report(title=title, rows=tuple(rows), untouched=tuple(rest))


def markdown(reports: Sequence[Report]) -> str:
    """A summary of all reports, then each one's table in a collapsed section."""
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
