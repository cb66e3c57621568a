"""The results of a sweep as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codetr.training.sweeps.jobs import Job
from codetr.writing import write_text

COLUMNS = {"AP": "AP", "AP50": "AP50", "step_time_s": "s / step", "peak_memory_gib": "memory GiB"}
"""Keys of metrics.json that a sweep's table shows, with their headings."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """A job's ``metrics`` as in metrics.json, None if it failed."""

    job: Job
    exit_code: int
    metrics: Mapping[str, Any] | None


def read_result(job: Job, exit_code: int) -> JobResult:
    """The result of a job that has ended."""
    path = job.run.metrics
    metrics = json.loads(path.read_text()) if exit_code == 0 and path.is_file() else None
    return JobResult(job=job, exit_code=exit_code, metrics=metrics)


def table_rows(results: Sequence[JobResult]) -> list[list[str]]:
    """Heading and one row per job, as text."""
    rows = [["job", "overrides", *COLUMNS.values()]]
    for result in results:
        values = result.metrics or {}
        numbers = [values.get(key) for key in COLUMNS]
        cells = ["-" if n is None else f"{n:.3f}" for n in numbers]
        if result.metrics is None:
            cells[0] = "failed"
        rows.append([str(result.job.number), result.job.label, *cells])
    return rows


def write_table(results: Sequence[JobResult], folder: Path) -> None:
    """Print the table and write it to sweep.md and sweep.csv in ``folder``."""
    heading, *rows = table_rows(results)
    table = Table(*heading, title=escape(f"sweep {folder.name}"))
    for row in rows:
        table.add_row(*map(escape, row))  # [atss] is not markup
    Console().print(table)
    lines = [heading, ["---"] * len(heading), *rows]
    markdown = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    write_text(folder / "sweep.md", markdown)
    table_text = io.StringIO(newline="")
    csv.writer(table_text).writerows([heading, *rows])
    write_text(folder / "sweep.csv", table_text.getvalue())
