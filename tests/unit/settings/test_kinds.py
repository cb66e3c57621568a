"""What values kinds take."""

import math
from typing import Any

import pytest

from codetr.settings.kinds import (
    Each,
    Either,
    Flag,
    FolderName,
    Kind,
    Matching,
    OneOf,
    Part,
    Real,
    Text,
    Whole,
)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Whole(1, 9), (1, 9), (0, 10, 1.0, True, "1", None)),
        (Real(0, 1), (0, 1, 0.5), (-1e-9, 1.1, math.nan, True, "0", None)),
        (Real(0, 1, above=True, below=True), (0.5,), (0, 1, 0.0, 1.0)),
        (Flag(), (True, False), (0, 1, "true", None)),
        (Text(), ("a",), ("", " ", "a\0", 1, None)),
        (OneOf("auto", 3), ("auto", 3), ("3", True, None, 3.0)),
        (Each(Whole(), length=2), ([1, 2],), ([1], [1, -1], 1, None, (1, 2))),
        (Each(Whole(), least=1, ascending=True), ([1, 2],), ([], [2, 1])),
        (Either(Whole(), OneOf(None)), (None, 3), (-1, "null")),
        (Matching("a|b", "a or b"), ("a", "b"), ("ab", None, 1)),
        (Part(), ({"_target_": "a.B"},), ({}, {"_target_": 3}, "a.B", None)),
        (FolderName(), ("run", 2024, "größe", "a.b"), ("", "..", "a/b", "a\\b", "\n", "x" * 201)),
    ],
)
def test_kinds(kind: Kind, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    assert all(map(kind.takes, good))
    assert not any(map(kind.takes, bad))
    assert str(kind)
