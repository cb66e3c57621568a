"""The tables and figures of docs/study.md and the README, from the records of sweeps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from tools.docs.looks import Look, looks_table
from tools.docs.recipe_table import with_tables
from tools.docs.records import CURVE, Kept
from tools.sweeps.estimates import estimate
from tools.sweeps.plots import ap_figure, draw_seeds, png
from tools.sweeps.report import difference, gain_over, table
from tools.sweeps.variants import Sweep, group_runs

SHOWN = ("AP", "AP50", "AP75", "step_time_s")
"""Of a run's numbers, in this order."""
BESIDE = {"study_k": "without denoising", "study_k_denoising": "with denoising"}
"""The records of the README's table, and their titles."""
README = "<!-- study -->", "<!-- end of study -->"
LOOKS = "<!-- analyses -->", "<!-- end of analyses -->"
NOT_RUN = "Not run yet."

Records = Mapping[str, Sequence[Kept]]
"""By the name of their sweep."""


def marks(name: str) -> tuple[str, str]:
    """Between which lines of the page a record's table stands."""
    return f"<!-- study: {name} -->", f"<!-- end of {name} -->"


def with_study(page: str, records: Records, path: Path) -> str:
    """The page with the tables of ``records`` between their marks; where marks have no record it
    says so. Raises UserError where a record has no marks.
    """
    for name in dict.fromkeys([*re.findall(r"<!-- study: (\S+) -->", page), *sorted(records)]):
        text = study_text(name, records[name]) if records.get(name) else NOT_RUN
        page = with_tables(page, text, path, *marks(name))
    return page


def with_looks(page: str, looks: Sequence[Look], path: Path) -> str:
    """The page with the table of analyses."""
    text = _markdown(looks_table(looks)) if looks else NOT_RUN
    return with_tables(page, text, path, *LOOKS)


def with_study_in_short(page: str, records: Records, path: Path) -> str:
    """The README with its one table."""
    return with_tables(page, short_table(_sweeps(records)), path, *README)


def study_text(name: str, kept: Sequence[Kept]) -> str:
    """A record's table, what has to be known of it, and its figure."""
    sweep = group_runs([one.run for one in kept])
    told = " ".join([*facts(kept), *steps_up(sweep), *sooner(sweep)])
    lines = [_markdown(table(sweep, SHOWN)), "", told, ""]
    return "\n".join([*lines, f"![AP of every run]({figure_path(name)})"])


def facts(kept: Sequence[Kept]) -> list[str]:
    """How much of it has run, at what length and where."""
    done = [one for one in kept if one.run.metrics is not None]
    steps = sorted({int(one.run.number("steps") or 0) for one in done})
    return [
        f"{len(done)} of {len(kept)} runs are finished"
        + (", of " + " or ".join(map(str, steps)) + " steps each." if steps else "."),
        f"Hardware: {_several(one.hardware for one in done)};",
        f"commit {_several(one.commit for one in done)}.",
    ]


def steps_up(sweep: Sweep) -> list[str]:
    """Where K was swept, what each further head brings: from the third row on, what the table does
    not say.
    """
    if not sweep.numeric:
        return []
    pairs = [(b, a, gain_over(b, a)) for b, a in pairwise(sweep.variants[1:])]
    return [f"{a.label} above {b.label}: {difference(found)}." for b, a, found in pairs if found]


def sooner(sweep: Sweep) -> list[str]:
    """After how many steps others have the best AP of the first variant, by seed."""
    first, *others = sweep.variants
    best, needed = first.by_seed("AP"), {}
    for variant in others:
        reached = [
            next((step for step, ap in run.curves.get(CURVE, ()) if ap >= best[run.seed]), None)
            for run in variant.runs
            if run.metrics is not None and run.seed in best
        ]
        if reached and None not in reached:
            needed[variant.label] = f"{fmean(s for s in reached if s is not None):.0f}"
    if not needed:
        return []
    told = ", ".join(f"{label} after {steps}" for label, steps in needed.items())
    return [f"The best AP of {first.label} is reached by {told} steps (mean over seeds)."]


def _several(values: object) -> str:
    found = dict.fromkeys(str(v) for v in values)  # type: ignore[attr-defined]
    return ", ".join(found) or "-"


def short_table(sweeps: Mapping[str, Sweep]) -> str:
    """AP and paired differences of the sweeps of ``BESIDE`` beside each other, a row per variant;
    those that have no finished run are left out.
    """
    shown = {n: s for n, s in sweeps.items() if any(v.numbers("AP") for v in s.variants)}
    shown = {name: shown[name] for name in BESIDE if name in shown}
    labels = dict.fromkeys(v.label for sweep in shown.values() for v in sweep.variants)
    heading = ["auxiliary heads"]
    for name in shown:
        heading += [f"AP {BESIDE[name]}", "seeds", "above K = 0, 95 % interval"]
    rows = [heading]
    for label in labels:
        row = [label]
        for sweep in shown.values():
            variant = next((v for v in sweep.variants if v.label == label), None)
            found = None if variant is None else estimate(variant.numbers("AP"))
            if variant is None or found is None:
                row += ["-", "0", "-"]
                continue
            first = sweep.variants[0]
            gain = "-" if variant is first else difference(gain_over(first, variant))
            row += [f"{found.mean:.3f}", str(found.count), gain]
        rows.append(row)
    return _markdown(rows)


def study_figures(records: Records) -> dict[str, bytes]:
    """PNGs by the name of their file: one per record that has a finished run, and ``study.png``,
    the README's.
    """
    done = {
        name: sweep
        for name, sweep in _sweeps(records).items()
        if any(v.numbers("AP") for v in sweep.variants)
    }
    figures = {Path(figure_path(name)).name: ap_figure(sweep) for name, sweep in done.items()}
    beside = {title: done[name] for name, title in BESIDE.items() if name in done}
    return figures | ({"study.png": seeds_figure(beside)} if beside else {})


def seeds_figure(sweeps: Mapping[str, Sweep]) -> bytes:
    """The same of several sweeps beside each other, with one scale, under their titles."""
    figure = Figure(figsize=(4.6 * len(sweeps), 3.6), layout="constrained")
    panels = figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0]
    for axes, (title, sweep) in zip(panels, sweeps.items(), strict=True):
        draw_seeds(axes, sweep)
        axes.set_title(title, fontsize="medium")
        axes.label_outer()
    panels[0].legend(fontsize="small", loc="lower right")
    return png(figure)


def figure_path(name: str) -> str:
    """Of a record's figure, from the page."""
    return f"images/study_{name.removeprefix('study_')}.png"


def _sweeps(records: Records) -> dict[str, Sweep]:
    return {name: group_runs([one.run for one in kept]) for name, kept in records.items() if kept}


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    heading, *rest = rows
    lines = (heading, ["---"] * len(heading), *rest)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
