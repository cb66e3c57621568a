"""The figures of an evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codetr.evaluation.confusion import Confusion
from codetr.evaluation.error_kinds import Errors, Kind
from codetr.evaluation.matching import Floats
from codetr.evaluation.precision_recall import RECALLS, THRESHOLDS, Curves

MOST_CURVES = 10
"""With more classes, curves have neither a colour nor a name of their own."""
MOST_ROWS = 20
"""Classes that a confusion matrix shows: more cannot be read."""


def precision_recall_figure(curves: Curves, names: Sequence[str]) -> Figure:
    """Precision over recall at IoU 0.5: each class and the mean."""
    figure, axes = _square()
    precision = curves.precision[curves.measured]
    mean = precision.mean()
    _draw(axes, RECALLS, precision, [names[k] for k in curves.measured], f"mean: AP50 {mean:.3f}")
    axes.set(xlabel="recall", ylabel="precision", title="precision over recall, IoU 0.5")
    return figure


def f1_figure(curves: Curves, names: Sequence[str]) -> Figure:
    """F1 over the score threshold: each class, the mean, and where that is largest."""
    figure, axes = _square()
    best = curves.best()
    f1 = curves.f1_above[curves.measured]
    axes.axvline(best.threshold, color="0.3", linestyle="--", linewidth=1)
    title = f"mean: {best.f1:.3f} at {best.threshold:.3f}"
    _draw(axes, THRESHOLDS, f1, [names[k] for k in curves.measured], title)
    axes.set(xlabel="score threshold", ylabel="F1", title="F1 over the score threshold, IoU 0.5")
    return figure


def confusion_figure(confusion: Confusion, names: Sequence[str]) -> Figure:
    """The confusion matrix, coloured by share of the row; of many classes, the most confused."""
    kept = confusion.most_confused(MOST_ROWS)
    title = f"detections with scores above {confusion.threshold:.3f}, IoU 0.5"
    if len(kept) < len(names):
        title = f"the {len(kept)} most confused of {len(names)} classes; {title}"
    shown = np.append(kept, len(names))
    share = confusion.counts / confusion.counts.sum(axis=1, keepdims=True).clip(min=1)
    counts, share = confusion.counts[np.ix_(shown, shown)], share[np.ix_(shown, shown)]
    side = 0.45 * len(shown) + 2.6
    figure = Figure(figsize=(max(side, 5), max(side - 0.6, 4)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    labels = [plain(names[k]) for k in kept]
    places = range(len(shown))
    axes.set_xticks(places, [*labels, "missed"], rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, [*labels, "background"])
    axes.axhline(len(kept) - 0.5, color="0.3", linewidth=1)
    axes.axvline(len(kept) - 0.5, color="0.3", linewidth=1)
    axes.set(xlabel="found as", ylabel="true class")
    axes.set_title(title, fontsize="medium")
    return figure


def error_figure(errors: Errors) -> Figure:
    """The AP50 that each kind of error costs, and its number of errors."""
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    axes = figure.subplots()
    costs = [errors.cost(kind) for kind in Kind]
    bars = axes.barh(range(len(costs)), costs, color=[_colour(i) for i in range(len(costs))])
    texts = [f"{cost:.3f}  ({errors.count(kind)})" for kind, cost in zip(Kind, costs, strict=True)]
    axes.bar_label(bars, texts, padding=3, fontsize="small")
    axes.set_yticks(range(len(costs)), [kind.value for kind in Kind])
    axes.set_ylim(len(costs) - 0.5, -0.5)
    axes.margins(x=0.2)
    axes.set(xlabel="AP50 lost (number of errors)", title=f"AP50 {errors.ap50():.3f}")
    axes.grid(alpha=0.3, axis="x")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file; a missing folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with any_script():
        figure.savefig(path, dpi=110)


@contextmanager
def any_script() -> Iterator[None]:
    """Suppress warnings of letters that the font lacks; they are drawn as empty squares."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def plain(name: str) -> str:
    """The name with dollar signs escaped, which matplotlib would read as mathematics."""
    return name.replace("$", r"\$")


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    return figure, axes


def _draw(axes: Axes, x: Floats, values: Floats, names: Sequence[str], mean: str) -> None:
    """A line per class, of ``values`` (K, len(x)), and their mean; few classes are named."""
    few = len(names) <= MOST_CURVES
    for place, (name, line) in enumerate(zip(names, values, strict=True)):
        colour, label = (_colour(place), plain(name)) if few else ("0.8", None)
        axes.plot(x, line, linewidth=1, color=colour, label=label)
    if not few:
        axes.plot([], [], linewidth=1, color="0.8", label=f"each of {len(names)} classes")
    axes.plot(x, values.mean(axis=0), color="black", linewidth=2.5, label=mean)
    axes.figure.legend(loc="outside right upper", fontsize="small")  # type: ignore[union-attr]


def _colour(place: int) -> tuple[float, float, float, float]:
    return colormaps["tab10"](place % 10)
