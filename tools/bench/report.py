"""What a benchmark found, with the machine, the date and the commit it was found with."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rich.table
import torch
from rich.markup import escape

from codetr.errors import UserError

Cell = float | str
LIBRARIES = (
    *("torch", "torchvision", "triton"),
    *("numba", "numpy", "lightning", "timm", "transformers"),
)


@dataclass(frozen=True)
class Table:
    """Named rows with a cell for each of ``columns`` (which does not count the names).

    Raises ValueError for a row of another length.
    """

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[Cell, ...]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, row in self.rows.items():
            if len(row) != len(self.columns):
                raise ValueError(f"row {name!r} has {len(row)} cells for {len(self.columns)}")


@dataclass(frozen=True)
class Report:
    """The tables of one run of one benchmark. ``date`` is ISO 8601; ``versions`` by library, empty
    in reports of before they were written down.
    """

    benchmark: str
    date: str
    commit: str
    hardware: str
    torch: str
    threads: int
    options: dict[str, Any] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)


def make_report(
    benchmark: str, device: torch.device, options: dict[str, Any], tables: tuple[Table, ...]
) -> Report:
    """The report of a run that has just ended on this machine."""
    return Report(
        benchmark=benchmark,
        date=datetime.date.today().isoformat(),
        commit=commit(),
        hardware=hardware(device),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        options=options,
        tables=tables,
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Of Python, CUDA, cuDNN and the libraries that numbers depend on; without those missing."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if torch.version.cuda is not None:
        found["CUDA"] = torch.version.cuda
        cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        found |= {} if cudnn is None else {"cuDNN": str(cudnn)}
    return found


def render(table: Table) -> rich.table.Table:
    """The table for a terminal, its notes below it."""
    shown = rich.table.Table(
        title=escape(table.title), caption=escape("\n".join(table.notes)) or None
    )
    shown.title_justify = shown.caption_justify = "left"
    shown.add_column("")
    for column in table.columns:
        shown.add_column(escape(column), justify="right")
    for name, row in table.rows.items():
        shown.add_row(escape(name), *(escape(_text(cell)) for cell in row))
    return shown


def _text(cell: Cell) -> str:
    """Three digits that count, or the whole number."""
    if isinstance(cell, str):
        return cell
    return f"{cell:.0f}" if abs(cell) >= 100 or cell == int(cell) else f"{cell:#.3g}"


def write_json(report: Report, path: Path) -> None:
    """Write the report. Raises UserError where the file cannot be written."""
    try:
        path.write_text(json.dumps(asdict(report), indent=2, default=str) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}): give --json another place"
        ) from None


def read_json(path: Path) -> Report:
    """A report that ``write_json`` wrote. Raises UserError where it is none."""
    try:
        content = json.loads(path.read_text())
        tables = tuple(
            Table(
                title=table["title"],
                columns=tuple(table["columns"]),
                rows={name: tuple(row) for name, row in table["rows"].items()},
                notes=tuple(table["notes"]),
            )
            for table in content.pop("tables")
        )
        return Report(**content, tables=tables)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a report of scripts/bench.py ({error}): write it again"
        ) from None


def hardware(device: torch.device) -> str:
    """The chip that did the work."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} logical cores"


def commit() -> str:
    """Of this checkout, marked where files differ from it; "unknown" outside of one."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return run.stdout.strip() or "unknown"
