"""Grouping of values; ``itertools.batched`` needs Python 3.12."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def grouped(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` values, built lazily; the last one may be shorter."""
    rest = iter(values)
    while group := list(islice(rest, size)):
        yield group
