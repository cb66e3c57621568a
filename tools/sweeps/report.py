"""A sweep's page: table and plots from the files of its runs, as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codetr.analysis.inspect_data import STYLE
from tools.sweeps.estimates import Estimate, estimate, paired
from tools.sweeps.plots import ap_figure, cost_figure, curves_figure
from tools.sweeps.runs import read_runs
from tools.sweeps.variants import Sweep, Variant, group_runs

NUMBERS = {
    "AP": (3, "AP"),
    "AP50": (3, "AP50"),
    "AP75": (3, "AP75"),
    "step_time_s": (3, "s / step"),
    "peak_memory_gib": (2, "memory GiB"),
    "device_hours": (3, "device-hours"),
}
"""Of metrics.json: digits and heading."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """``name`` of its file, ``title``, what is to be seen (``caption``), and the PNG."""

    name: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is written, whatever the format. ``table`` begins with its heading."""

    title: str
    facts: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    figures: tuple[Figure, ...]


def write_report(folder: Path) -> tuple[Path, Path, Path]:
    """Read the runs below ``folder``; write ``report.md`` (with its plots in ``report/``), the
    self-contained ``report.html`` and the table's numbers as ``report.json`` there; returns their
    paths. Raises UserError.
    """
    sweep = group_runs(read_runs(folder))
    page = make_page(folder.absolute().name, sweep)
    pictures = folder / "report"
    pictures.mkdir(exist_ok=True)
    for figure in page.figures:
        (pictures / f"{figure.name}.png").write_bytes(figure.png)
    markdown, web = folder / "report.md", folder / "report.html"
    markdown.write_text(as_markdown(page, pictures.name))
    web.write_text(as_html(page))
    numbers = folder / "report.json"
    numbers.write_text(json.dumps(summary(sweep), indent=1) + "\n")
    return markdown, web, numbers


def make_page(name: str, sweep: Sweep) -> Page:
    """Facts, table and figures of a sweep."""
    costs = "Means and standard deviations. Step time leaves validation out; device-hours too."
    return Page(
        title=f"Sweep {name}",
        facts=facts(sweep),
        table=table(sweep),
        figures=(
            Figure(
                name="ap",
                title=f"AP against {sweep.axis}",
                caption="Small marks are runs, one per seed; points are their means with the 95 % "
                "interval of Student's t. The table has the interval of the difference by seed, "
                "which is narrower where a seed does the same to all variants.",
                png=ap_figure(sweep),
            ),
            Figure(name="cost", title="Cost", caption=costs, png=cost_figure(sweep)),
            Figure(
                name="curves",
                title="Convergence, and losses per scheme and head",
                caption="Lines are means over seeds, bands reach from the lowest to the highest. "
                "Losses are raw terms added up, without their weights; a head's positive queries "
                "are under positive_.",
                png=curves_figure(sweep),
            ),
        ),
    )


def facts(sweep: Sweep) -> tuple[str, ...]:
    """What has to be known to read the numbers."""
    runs = sweep.runs
    seeds = sorted({str(run.seed) for run in runs if run.seed is not None})
    lines = [f"{len(runs)} runs, {len(sweep.variants)} variants, seeds {', '.join(seeds) or '-'}."]
    told = [set(run.overrides) for run in runs if run.overrides]
    if told and set.intersection(*told):
        lines.append(f"All were told: {shlex.join(sorted(set.intersection(*told)))}")
    missing = [run.folder.name for run in runs if run.metrics is None]
    if missing:
        lines.append(f"NOT FINISHED, and not among the numbers: {', '.join(missing)}.")
    steps = sorted({int(run.number("steps") or 0) for run in runs if run.number("steps")})
    if steps:
        lines.append(f"Optimiser steps: {', '.join(map(str, steps))}.")
    if len(steps) > 1:
        lines.append("The variants differ in their number of steps: their AP compares badly.")
    if max(len(v.numbers("AP")) for v in sweep.variants) < 2:
        lines.append("One seed each: small differences say nothing.")
    return tuple(lines)


def table(sweep: Sweep, numbers: Sequence[str] = tuple(NUMBERS)) -> tuple[tuple[str, ...], ...]:
    """One row per variant: means and deviations of ``numbers``, of those of NUMBERS, and how much
    its AP is above that of the first variant.
    """
    heading = (sweep.axis, "runs", *(NUMBERS[name][1] for name in numbers), "AP - first, by seed")
    first = sweep.variants[0]
    rows = [heading]
    for variant in sweep.variants:
        gain = "-" if variant is first else difference(gain_over(first, variant))
        cells = [_cell(estimate(variant.numbers(name)), NUMBERS[name][0]) for name in numbers]
        finished = sum(run.metrics is not None for run in variant.runs)
        count = (
            str(finished) if finished == len(variant.runs) else f"{finished} of {len(variant.runs)}"
        )
        rows.append((variant.label, count, *cells, gain))
    return tuple(rows)


def summary(sweep: Sweep) -> list[dict[str, Any]]:
    """The same without rounding, by variant: AP by seed, and of every number mean, deviation,
    interval and count, null where there is none.
    """
    first = sweep.variants[0]
    return [
        {
            "variant": variant.label,
            "runs": len(variant.runs),
            "AP_by_seed": variant.by_seed("AP"),
            **{name: _numbers(estimate(variant.numbers(name))) for name in NUMBERS},
            "AP_minus_first": _numbers(gain_over(first, variant)),
        }
        for variant in sweep.variants
    ]


def _numbers(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else {**asdict(found), "interval": found.interval}


def gain_over(first: Variant, other: Variant, name: str = "AP") -> Estimate | None:
    """The paired difference by seed."""
    return paired(first.by_seed(name), other.by_seed(name))


def difference(found: Estimate | None) -> str:
    """``+0.120 [+0.101, +0.139]``: mean and 95 % interval, which one seed does not have."""
    if found is None:
        return "-"
    if found.interval is None:
        return f"{found.mean:+.3f} (one seed)"
    low, high = found.interval
    return f"{found.mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _cell(found: Estimate | None, digits: int) -> str:
    if found is None:
        return "-"
    mean = f"{found.mean:.{digits}f}"
    return mean if found.deviation is None else f"{mean} ± {found.deviation:.{digits}f}"


def as_markdown(page: Page, pictures: str = "report") -> str:
    """The page with its figures as files in the folder ``pictures``."""
    heading, *rows = page.table
    lines = [f"# {page.title}", "", *(f"- {fact}" for fact in page.facts), ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)]
    for figure in page.figures:
        lines += ["", f"## {figure.title}", "", f"![{figure.title}]({pictures}/{figure.name}.png)"]
        lines += ["", figure.caption]
    return "\n".join(lines) + "\n"


def as_html(page: Page) -> str:
    """The page as one file, its figures inside."""
    heading, *rows = page.table
    body = [f"<h1>{html.escape(page.title)}</h1>", "<ul>"]
    body += [f"<li>{html.escape(fact)}</li>" for fact in page.facts]
    body += [
        "</ul>",
        "<table>",
        _row(heading, "th"),
        *(_row(row, "td") for row in rows),
        "</table>",
    ]
    for figure in page.figures:
        source = "data:image/png;base64," + base64.b64encode(figure.png).decode()
        title = html.escape(figure.title)
        body += [f"<h2>{title}</h2>", f'<img src="{source}" alt="{title}">']
        body += [f"<p>{html.escape(figure.caption)}</p>"]
    head = f'<meta charset="utf-8"><title>{html.escape(page.title)}</title><style>{STYLE}</style>'
    return (
        f"<!doctype html>\n<html>\n<head>{head}</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _row(cells: tuple[str, ...], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
