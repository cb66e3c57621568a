"""The findings of an analysis: written as a table (JSON, Markdown) and figures, and logged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codetr.evaluation.figures import any_script, plain
from codetr.writing import write_text

Cell = str | int | float | None
"""None: undefined, such as the mean of no values."""
Draw = Callable[[Axes], None]
"""Draws one picture."""

PICTURE_INCHES = 2.9


@dataclass(frozen=True, kw_only=True)
class Findings:
    """``columns`` and ``rows`` of the table, whose first column is the checkpoint's name;
    ``figures`` by name; ``notes`` explain both; ``series`` are the data of the curves.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    series: Mapping[str, Any] = field(default_factory=dict)


def write_findings(
    findings: Findings, title: str, checkpoints: Mapping[str, str], folder: Path
) -> list[Path]:
    """Write ``title``.json, ``title``.md and a PNG per figure into ``folder``; returns the paths.
    ``checkpoints`` are the files by the names in the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: folder / f"{title}_{name}.png" for name in findings.figures}
    with any_script():
        for name, figure in findings.figures.items():
            figure.savefig(pictures[name], dpi=150)
    content = {
        "analysis": title,
        "checkpoints": dict(checkpoints),
        "rows": [dict(zip(findings.columns, row, strict=True)) for row in findings.rows],
        "notes": list(findings.notes),
        **findings.series,
    }
    numbers, page = folder / f"{title}.json", folder / f"{title}.md"
    write_text(numbers, json.dumps(content, indent=1, ensure_ascii=False))
    images = [f"![{name}]({path.name})" for name, path in pictures.items()]
    lines = [f"# {title}", *findings.notes, markdown(findings.columns, findings.rows), *images]
    write_text(page, "\n\n".join(lines) + "\n")
    return [numbers, page, *pictures.values()]


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A Markdown table."""
    lines = [
        columns,
        ["---"] * len(columns),
        *([format_cell(cell) for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def format_cell(cell: Cell) -> str:
    """A cell as text: numbers with four decimals, a dash for undefined values."""
    if cell is None:
        return "-"
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell).replace("|", r"\|")


def log_findings(
    findings: Findings, title: str, written: Sequence[Path], loggers: Sequence[Logger]
) -> None:
    """Log the numbers of the table, and in W&B also the table and the figures."""
    numbers = {
        "/".join([title, *words, column]): value
        for row in findings.rows
        for words in [[cell for cell in row if isinstance(cell, str)]]
        for column, value in zip(findings.columns, row, strict=True)
        if isinstance(value, int | float)
    }
    for logger in loggers:
        logger.log_metrics(numbers, step=0)
        if isinstance(logger, WandbLogger):
            rows = [list(row) for row in findings.rows]
            logger.log_table(f"analysis/{title}", list(findings.columns), rows)
            for path in written:
                if path.suffix == ".png":
                    logger.log_image(key=f"analysis/{path.stem}", images=[str(path)])
        logger.finalize("success")


def mean(values: Iterable[float]) -> float | None:
    """The mean without NaN values; None if there are no others."""
    found = [value for value in values if not math.isnan(value)]
    return sum(found) / len(found) if found else None


def pictures(columns: Sequence[str], rows: Sequence[Sequence[Draw]]) -> Figure:
    """A figure with rows of pictures and a title above each column."""
    size = (PICTURE_INCHES * len(columns), PICTURE_INCHES * 0.9 * len(rows) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for places, draws in zip(grid, rows, strict=True):
        for axes, draw in zip(places, draws, strict=True):
            draw(axes)
            axes.set_axis_off()
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(plain(title), fontsize="medium")
    return figure


def colour(place: int) -> tuple[float, float, float, float]:
    """The colour of a checkpoint, split or variant by its index, the same in all figures."""
    palette = colormaps["tab10" if place < 10 else "tab20b"]
    return palette(place % 10)


def png(figure: Figure) -> bytes:
    """The figure as PNG data."""
    target = BytesIO()
    with any_script():
        figure.savefig(target, format="png", dpi=110)
    return target.getvalue()
