"""Training steps of several models in turns, and where their time goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch

from tools.bench.contestant import (
    ASSIGNMENT,
    BACKWARD,
    BACKWARD_BACKBONE,
    BACKWARD_ENCODER,
    OPTIMIZER,
    REST,
    Contestant,
    training_step,
)
from tools.bench.measure import in_turns
from tools.bench.part_times import PartTimer
from tools.bench.report import Cell, Table

ORDER = (
    *("backbone", "neck", "encoder", "queries", "decoder", "class and box layers"),
    *("auxiliary heads", ASSIGNMENT, REST, BACKWARD, BACKWARD_ENCODER, BACKWARD_BACKBONE),
    OPTIMIZER,
)
"""Parts of a step, in the order of a table."""

PARTS_NOTE = (
    "Seconds of each part without those inside it; one without a number is in the rest, and so is "
    "what SciPy takes where a scheme solves several matchings together."
)

Times = dict[str, list[float]]
Parts = dict[str, dict[str, float]]


def time_steps(
    contestants: Sequence[Contestant], repeats: int, device: torch.device
) -> tuple[Times, Parts]:
    """Seconds of each turn, and median seconds of each part, by the contestant's name."""
    laps: dict[str, list[dict[str, float]]] = {c.name: [] for c in contestants}
    paths = {c.name: _timed_step(c, PartTimer(device), laps[c.name]) for c in contestants}
    times = in_turns(paths, repeats, device, once=True)
    return times, {name: _medians(found[-repeats:]) for name, found in laps.items()}


def _timed_step(
    contestant: Contestant, timer: PartTimer, laps: list[dict[str, float]]
) -> Callable[[], None]:
    """A training step that puts the seconds of its parts into ``laps``."""
    contestant.watch(timer)

    def run() -> None:
        training_step(contestant, timer)
        laps.append(timer.read())

    return run


def _medians(laps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {part: statistics.median(lap[part] for lap in laps) for part in laps[0]}


def parts_table(title: str, parts: Parts) -> Table:
    """One column per contestant, one row per part that any of them has."""
    rows: dict[str, tuple[Cell, ...]] = {}
    for part in ORDER:
        if any(part in own for own in parts.values()):
            rows[part] = tuple(own.get(part, "") for own in parts.values())
    return Table(title, tuple(parts), rows, (PARTS_NOTE,))
