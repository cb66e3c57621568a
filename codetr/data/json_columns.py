"""Tolerant parsing of columns of JSON entries.

Values of unexpected types are accepted if they are unambiguous: ``1``, ``1.0`` and ``"1"`` are the
same id, ``"0"`` is false. Entries with other values are reported. Columns are read as a whole if
all values have the expected type, otherwise value by value.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr.data.formats.content import short_repr
from codetr.errors import UserError

Entry = Mapping[str, Any]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Flaw:
    """Why an ``entry`` of the file ``path`` cannot be used, with the remedy."""

    path: Path
    entry: str
    text: str

    def __str__(self) -> str:
        return f"{self.entry} in {self.path} {self.text}"


Report = Callable[[Flaw], object]
"""Called with each flaw, in the order of the file; the entry is skipped."""


def refuse(flaw: Flaw) -> None:
    """A ``Report`` that raises UserError for the first flaw."""
    raise UserError(str(flaw))


def as_number(value: Any) -> float | None:
    """The value of a finite number or of its text; None for anything else."""
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value.strip()) else None
    if type(value) not in (int, float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of floats
        return None


def as_integer(value: Any) -> int | None:
    """The value of a 64-bit integer given as 1, 1.0, "1" or "1.0"; None for anything else."""
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        value = int(value)
    if type(value) is int:
        return value if abs(value) < 2**63 else None
    number = as_number(value)
    exact = number is not None and number.is_integer() and abs(number) <= 2**53
    return int(number) if number is not None and exact else None


def as_identifier(value: Any) -> int | None:
    """The id of an image: the value of ``as_integer``, or 48 bits of a hash for any other text such
    as ``"img1"``, so that the same text gives the same id in all files. None for anything else.
    """
    number = as_integer(value)
    if number is None and as_text(value) is not None and as_number(value) is None:
        return number_of(value)
    return number


def number_of(name: str) -> int:
    """48 bits of a hash. The chance of a collision among 100 000 names is 1 in 56 000."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:6])


def as_flag(value: Any) -> bool | None:
    """The value of a boolean, or of 0 or 1 as number or text; None for anything else."""
    if isinstance(value, bool):
        return value
    number = as_integer(value)
    return bool(number) if number in (0, 1) else None


def as_box(value: Any) -> list[float] | None:
    """A list of four numbers; None for anything else."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [as_number(v) for v in value]
    return None if None in numbers else numbers  # type: ignore[return-value]


def as_text(value: Any) -> str | None:
    """A string that is not blank, unchanged; None for anything else."""
    return value if isinstance(value, str) and value.strip() else None


def as_label(value: Any) -> str | None:
    """The name of a class: a string that is not blank, or a number or boolean as in JSON."""
    if isinstance(value, bool | int | float):
        value = json.dumps(value)
    return as_text(value)


def as_name(value: Any) -> str | None:
    """A file name; empty if there is none."""
    return value if value == "" else as_text(value)


def as_side(value: Any) -> int | None:
    """A side of an image in pixels; 0 if unknown."""
    side = as_integer(value)
    return side if side is not None and 0 <= side < 2**31 else None


def pack_integers(values: list[Any]) -> NDArray[np.int64] | None:
    """(N,) if all values are integers, else None. Raises OverflowError beyond 64 bits."""
    return np.array(values, np.int64) if {int}.issuperset(map(type, values)) else None


def pack_sides(values: list[Any]) -> NDArray[np.int64] | None:
    """(N,) if all values are integers from 0 to 2**31, else None."""
    sides = pack_integers(values)
    return sides if sides is not None and ((sides >= 0) & (sides < 2**31)).all() else None


def pack_numbers(values: list[Any]) -> NDArray[np.float64] | None:
    """(N,) if all values are finite numbers, else None."""
    if not {int, float}.issuperset(map(type, values)):
        return None
    numbers = np.array(values, np.float64)
    return numbers if np.isfinite(numbers).all() else None


def pack_flags(values: list[Any]) -> NDArray[np.bool_] | None:
    """(N,) if all values are booleans, 0 or 1, else None."""
    if not {int, bool}.issuperset(map(type, values)):
        return None
    flags = np.array(values, np.int64)
    return flags.astype(bool) if ((flags == 0) | (flags == 1)).all() else None


def pack_boxes(values: list[Any]) -> NDArray[np.float64] | None:
    """(N, 4) if all values are lists of four finite numbers, else None."""
    if not ({list}.issuperset(map(type, values)) and {4}.issuperset(map(len, values))):
        return None
    numbers = pack_numbers(list(chain.from_iterable(values)))
    return None if numbers is None else numbers.reshape(-1, 4)


def pack_texts(values: list[Any]) -> list[str] | None:
    """The values themselves if all are strings without blank ones, else None."""
    texts = {str}.issuperset(map(type, values)) and not any(map(str.isspace, values))
    return values if texts else None


@dataclass(frozen=True)
class Kind:
    """A kind of values: ``read`` parses one, and returns None if it is of another kind; ``pack``
    makes an array of values that all have the expected type, or returns None; ``blank`` replaces
    missing and null values.
    """

    read: Callable[[Any], Any]
    pack: Callable[[list[Any]], Any]
    blank: Any


INTEGER = Kind(as_integer, pack_integers, 0)
IDENTIFIER = Kind(as_identifier, pack_integers, 0)
SIDE = Kind(as_side, pack_sides, 0)
NUMBER = Kind(as_number, pack_numbers, 0.0)
FLAG = Kind(as_flag, pack_flags, False)
NAME = Kind(as_name, pack_texts, "")
BOX = Kind(as_box, pack_boxes, [0.0] * 4)


@dataclass(frozen=True, kw_only=True)
class Field:
    """The values of a key, which have to be as ``needs`` says. Missing and null values are flaws
    unless ``optional``; ``otherwise`` may derive them from the rest of the entry.
    """

    key: str
    kind: Kind
    needs: str
    optional: bool = False
    otherwise: Callable[[Entry], Any] | None = None


class Table:
    """The entries of a list in the file, and the first flaw of each by row."""

    def __init__(self, entries: list[Any], kind: str) -> None:
        self.kind = kind
        self.flaws: dict[int, str] = {}
        self.entries: Sequence[Entry] = entries
        if not {dict}.issuperset(map(type, entries)):
            self.entries = [entry if isinstance(entry, dict) else {} for entry in entries]
            for row, entry in enumerate(entries):
                if not isinstance(entry, dict):
                    self.flaws[row] = f"is {short_repr(entry)}, not an object: correct or remove it"

    def column(self, field: Field) -> Any:
        """The values of a key by row, ``blank`` where they are invalid."""
        values = [entry.get(field.key) for entry in self.entries]
        if field.otherwise:
            for row, value in enumerate(values):
                if value is None or value == []:
                    found = field.otherwise(self.entries[row])
                    values[row] = value if found is None else found
        try:
            packed = field.kind.pack(values)
        except OverflowError:  # integers of more than 64 bits
            packed = None
        if packed is not None:
            return packed
        return field.kind.pack([self._value(row, value, field) for row, value in enumerate(values)])

    def _value(self, row: int, value: Any, field: Field) -> Any:
        if value is None and field.optional:
            return field.kind.blank
        parsed = field.kind.read(value)
        if parsed is None:
            self._flaw_value(row, value, field)
            return field.kind.blank
        return parsed

    def _flaw_value(self, row: int, value: Any, field: Field) -> None:
        if field.key in self.entries[row] or value is not None:
            self.flaw(row, f"has {field.key} {short_repr(value)}: it must be {field.needs}")
        else:
            self.flaw(row, f"has no '{field.key}': add it or remove the {self.kind}")

    def require(self, field: Field, values: Sequence[Any]) -> None:
        """Record a flaw for each blank value of an optional key."""
        if not all(values):
            for row, value in enumerate(values):
                if not value:
                    self._flaw_value(row, self.entries[row].get(field.key), field)

    def flaw(self, row: int, text: str) -> None:
        """Record a flaw of a row; only the first one is kept."""
        self.flaws.setdefault(row, text)

    def usable(self, path: Path, report: Report) -> NDArray[np.int64]:
        """Report all flaws and return the rows without any."""
        for row in sorted(self.flaws):
            entry = self.entries[row]
            named = short_repr(entry["id"]) if entry.get("id") is not None else f"number {row}"
            report(Flaw(path=path, entry=f"{self.kind} {named}", text=self.flaws[row]))
        rows = np.arange(len(self.entries))
        return rows[~np.isin(rows, list(self.flaws))] if self.flaws else rows
