"""What is drawn of a sweep."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from tools.sweeps.plots import draw_seeds
from tools.sweeps.runs import Run
from tools.sweeps.variants import Sweep, Variant


def variant(position: int, *aps: float) -> Variant:
    runs = [Run(folder=Path("x"), seed=i, metrics={"AP": ap}) for i, ap in enumerate(aps)]
    return Variant(label=f"K = {position}", position=float(position), runs=tuple(runs))


@pytest.mark.parametrize(
    ("aps", "drawn", "label"),
    [
        ([(0.3, 0.4), (0.5, 0.6)], [True, True], "mean, 95 % interval"),
        ([(0.3, 0.4), (0.5,)], [True, False], "mean, 95 % interval"),
        ([(0.3,), (0.5,)], [False, False], "mean"),
    ],
)
def test_a_single_run_has_no_interval(
    aps: list[tuple[float, ...]], drawn: list[bool], label: str
) -> None:
    axes = Figure().subplots()
    variants = tuple(variant(place, *values) for place, values in enumerate(aps))
    draw_seeds(axes, Sweep(axis="K", variants=variants))
    (bars,) = axes.containers
    assert bars.get_label() == label
    points, _, (segments,) = bars
    assert np.isfinite(np.asarray(points.get_ydata(), float)).all()
    assert [len(segment) > 0 for segment in segments.get_segments()] == drawn
