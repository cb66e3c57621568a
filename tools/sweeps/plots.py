"""The figures of a sweep's page, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codetr.analysis.findings import colour, png
from tools.sweeps.estimates import estimate
from tools.sweeps.runs import Curve
from tools.sweeps.variants import Sweep, Variant, loss_groups

COSTS = {
    "step_time_s": "seconds per step",
    "peak_memory_gib": "memory, GiB",
    "device_hours": "device-hours of training",
}


def ap_figure(sweep: Sweep) -> bytes:
    """AP of every run over what was swept, with means and their confidence intervals."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    draw_seeds(axes, sweep)
    axes.legend(fontsize="small", loc="lower right")
    return png(figure)


def draw_seeds(axes: Axes, sweep: Sweep) -> None:
    """A small mark per run, and per variant the mean, of several runs with its 95 % interval."""
    places = {
        float(i) if variant.position is None else variant.position: variant
        for i, variant in enumerate(sweep.variants)
    }
    done = {p: v.numbers("AP") for p, v in sorted(places.items()) if v.numbers("AP")}
    for number, (place, values) in enumerate(done.items()):
        label = "one run per seed" if number == 0 else None
        axes.plot([place] * len(values), values, "_", color="0.3", markersize=12, label=label)
    found = {place: estimate(values) for place, values in done.items()}
    axes.errorbar(
        list(found),
        [e.mean for e in found.values() if e],
        [math.nan if e.margin is None else e.margin for e in found.values() if e],
        fmt="o-" if sweep.numeric else "o",
        capsize=5,
        label="mean, 95 % interval" if any(e and e.margin for e in found.values()) else "mean",
    )
    if not sweep.numeric:
        labels = [variant.label for variant in sweep.variants]
        axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
    elif all(place.is_integer() for place in places):
        axes.set_xticks(list(places))
    axes.set(xlabel=sweep.axis, ylabel="AP of the best validation")
    axes.grid(alpha=0.3)


def cost_figure(sweep: Sweep) -> bytes:
    """Step time, memory and device-hours, one bar per variant."""
    figure = Figure(figsize=(12, 0.45 * len(sweep.variants) + 1.6), layout="constrained")
    for axes, (name, title) in zip(
        figure.subplots(1, len(COSTS), sharey=True), COSTS.items(), strict=True
    ):
        for place, variant in enumerate(sweep.variants):
            found = estimate(variant.numbers(name))
            if found:
                axes.barh(place, found.mean, xerr=found.deviation or 0.0, color=colour(place))
        axes.set_yticks(range(len(sweep.variants)), [v.label for v in sweep.variants])
        axes.set_ylim(len(sweep.variants) - 0.5, -0.5)
        axes.set(title=title)
        axes.grid(alpha=0.3, axis="x")
    return png(figure)


def curves_figure(sweep: Sweep) -> bytes:
    """Validation AP over optimiser steps, and raw losses: a panel per scheme and auxiliary head."""
    titles = ["AP of every validation", *loss_groups(sweep)]
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for number, (axes, title) in enumerate(zip(panels, titles, strict=False)):
        for place, variant in enumerate(sweep.variants):
            found = variant.loss(title) if number else variant.curves("val/AP")
            _draw(axes, found, variant, place)
        axes.set(title=title, xlabel="optimiser steps")
        axes.grid(alpha=0.3)
    for axes in panels[len(titles) :]:
        axes.remove()
    handles = {
        t: h for a in figure.axes for h, t in zip(*a.get_legend_handles_labels(), strict=True)
    }
    if handles:
        order = [v.label for v in sweep.variants if v.label in handles]
        figure.legend(
            [handles[t] for t in order],
            order,
            fontsize="small",
            loc="outside lower center",
            ncols=3,
        )
    return png(figure)


def _draw(axes: Axes, curves: Sequence[Curve], variant: Variant, place: int) -> None:
    """The mean over seeds at the steps that all have, and the range between them."""
    if not curves:
        return
    tables = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    values = [[table[step] for table in tables] for step in steps]
    axes.plot(
        steps, [fmean(v) for v in values], color=colour(place), label=variant.label, marker="."
    )
    if len(curves) > 1:
        lows, highs = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(steps, lows, highs, color=colour(place), alpha=0.2, linewidth=0)
