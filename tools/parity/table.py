"""Compare quantities, one row each, and print them as a table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """``|ours - recorded| <= absolute + relative * |recorded|``; both 0: exactly equal."""

    absolute: float = 0.0
    relative: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.absolute:g}"] if self.absolute else []
        parts += [f"{self.relative:g} rel"] if self.relative else []
        return " + ".join(parts) or "equal"


EXACT = Tolerance()


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Tolerances of ``arrays``, ``losses`` and ``gradients`` (norms). Integer arrays must be equal.
    ``special`` takes precedence: the first regular expression found in a name.
    """

    arrays: Tolerance = EXACT
    losses: Tolerance = EXACT
    gradients: Tolerance = EXACT
    special: Mapping[str, Tolerance] = field(default_factory=dict)

    def of_array(self, name: str, recorded: np.ndarray) -> Tolerance:
        """Tolerance of an array, which may hold integers."""
        return self._special(name) or (EXACT if recorded.dtype.kind in "biu" else self.arrays)

    def of_loss(self, name: str) -> Tolerance:
        """Tolerance of a loss by its official name."""
        return self._special(name) or self.losses

    def _special(self, name: str) -> Tolerance | None:
        return next((own for part, own in self.special.items() if re.search(part, name)), None)


@dataclass(frozen=True, kw_only=True)
class Row:
    """``absolute`` and ``relative`` are the largest differences over all values of ``quantity``.
    ``array`` is the recorded one, if it is not named as the quantity up to a remark in brackets.
    """

    quantity: str
    absolute: float
    relative: float
    tolerance: str
    ok: bool
    array: str = ""

    @property
    def recorded(self) -> str:
        """The name of the recorded array."""
        return self.array or self.quantity.split(" (")[0]


def compare_bits(quantity: str, ours: Any, recorded: Any, most: int = 0) -> Row:
    """Count differing entries of two 0/1 arrays, at most ``most`` of which may differ. With unequal
    shapes all do.
    """
    mine, other = np.asarray(ours).astype(bool), np.asarray(recorded).astype(bool)
    different = int((mine != other).sum()) if mine.shape == other.shape else other.size
    return Row(
        quantity=quantity,
        absolute=float(different),
        relative=different / max(other.size, 1),
        tolerance=f"{most} bits" if most else "equal",
        ok=mine.shape == other.shape and different <= most,
    )


def compare(quantity: str, ours: Any, recorded: Any, tolerance: Tolerance = EXACT) -> Row:
    """Compare tensors, arrays or numbers.

    Infinite and NaN values must be the same in both. Unequal shapes count as an infinite
    difference. The relative difference ignores recorded values near zero.
    """
    a, b = _array(ours), _array(recorded)
    if a.shape != b.shape:
        name = f"{quantity} (shape {a.shape} against {b.shape})"
        return Row(
            quantity=name, absolute=math.inf, relative=math.inf, tolerance=str(tolerance), ok=False
        )
    finite = np.isfinite(b)
    same = bool(np.array_equal(a[~finite], b[~finite], equal_nan=True))
    same &= bool(np.isfinite(a[finite]).all())
    difference = np.abs(a[finite] - b[finite])
    size = np.abs(b[finite])
    within = bool((difference <= tolerance.absolute + tolerance.relative * size).all())
    comparable = size > 1e-12
    share = difference[comparable] / size[comparable]
    return Row(
        quantity=quantity,
        absolute=float(difference.max(initial=0.0)) if same else math.inf,
        relative=float(share.max(initial=0.0)) if same else math.inf,
        tolerance=str(tolerance),
        ok=same and within,
    )


def compare_all(
    ours: Mapping[str, Any],
    recorded: Mapping[str, np.ndarray],
    tolerances: Tolerances,
    place: str = "",
) -> Iterator[Row]:
    """Compare each of ``ours`` with the recorded array called ``place`` + its name."""
    for name, value in ours.items():
        stored = recorded[place + name]
        yield compare(place + name, value, stored, tolerances.of_array(place + name, stored))


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def render(title: str, rows: Sequence[Row]) -> Table:
    """The rows as a table for a terminal."""
    table = Table(title=title)
    table.add_column("quantity", no_wrap=True)
    for name in ("absolute", "relative", "tolerance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ok")
    for row in rows:
        table.add_row(
            row.quantity,
            f"{row.absolute:.1e}",
            f"{row.relative:.1e}",
            row.tolerance,
            "yes" if row.ok else "[red]NO",
        )
    return table
