"""Kinds of values that settings can take, with their descriptions for messages."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MILLION = 1_000_000
UNBOUNDED = 1e15
"""Bounds of this size are left out of descriptions."""


class Kind(ABC):
    """A set of plain values; ``str`` describes it for a message: "a whole number from 1 to 10"."""

    @abstractmethod
    def takes(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""

    def __or__(self, other: Kind) -> Kind:
        return Either(self, other)


@dataclass(frozen=True)
class Either(Kind):
    """Values of one of two kinds."""

    first: Kind
    second: Kind

    def takes(self, value: Any) -> bool:
        """See ``Kind``."""
        return self.first.takes(value) or self.second.takes(value)

    def __str__(self) -> str:
        return f"{self.first}, or {self.second}"


@dataclass(frozen=True)
class Whole(Kind):
    """Integers from ``least`` to ``most``, without booleans."""

    least: int = 0
    most: int = MILLION

    def takes(self, value: Any) -> bool:
        """See ``Kind``."""
        return type(value) is int and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}"


@dataclass(frozen=True)
class Real(Kind):
    """Finite numbers from ``least`` to ``most``; ``above`` and ``below`` exclude these bounds."""

    least: float = 0.0
    most: float = MILLION
    above: bool = False
    below: bool = False

    def takes(self, value: Any) -> bool:
        """See ``Kind``."""
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        least, most = self.least, self.most
        low = value > least if self.above else value >= least
        return low and (value < most if self.below else value <= most)

    def __str__(self) -> str:
        if self.least <= -UNBOUNDED and self.most >= UNBOUNDED:
            return "a number"
        low = f"{'above' if self.above else 'from'} {self.least:.12g}"
        return f"a number {low} {'and below' if self.below else 'to'} {self.most:.12g}"


@dataclass(frozen=True)
class Flag(Kind):
    """True and false."""

    def takes(self, value: Any) -> bool:
        """See ``Kind``."""
        return type(value) is bool

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text(Kind):
    """Strings that are not blank."""

    def takes(self, value: Any) -> bool:
        """See ``Kind``."""
        return isinstance(value, str) and bool(value.strip()) and "\0" not in value

    def __str__(self) -> str:
        return "a string"


@dataclass(frozen=True)
class FilePath(Text):
    """Paths of files and folders; see ``names_as_text`` for those like ``2024``."""

    def __str__(self) -> str:
        return "the path of a file or folder"


@dataclass(frozen=True)
class FolderName(Kind):
    """Names of folders; a number counts as a name, see ``names_as_text``."""

    longest: int = 200  # bytes

    def takes(self, value: Any) -> bool:
        """See ``Kind``."""
        if type(value) not in (str, int, float):
            return False
        name = str(value)
        if not name.strip() or name in (".", "..") or not name.isprintable():
            return False
        return not set(name) & set("/\\") and len(name.encode()) <= self.longest

    def __str__(self) -> str:
        return f"a name without slashes, of at most {self.longest} bytes"


@dataclass(frozen=True)
class Matching(Kind):
    """Strings that fully match a regular expression; ``name`` describes them."""

    pattern: str
    name: str

    def takes(self, value: Any) -> bool:
        """See ``Kind``."""
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.name


class OneOf(Kind):
    """An enumeration of values; ``note`` ends its description."""

    def __init__(self, *choices: Any, note: str = "") -> None:
        self.choices, self.note = choices, note

    def takes(self, value: Any) -> bool:
        """See ``Kind``."""
        return any(value == choice and type(value) is type(choice) for choice in self.choices)

    def __str__(self) -> str:
        choices = ["null" if choice is None else str(choice) for choice in self.choices]
        return " or ".join(choices) + self.note


@dataclass(frozen=True)
class Each(Kind):
    """Lists of values of a kind: ``length`` of them, or at least ``least``."""

    kind: Kind
    length: int | None = None
    least: int = 0
    ascending: bool = False

    def takes(self, value: Any) -> bool:
        """See ``Kind``."""
        if not isinstance(value, list) or not all(map(self.kind.takes, value)):
            return False
        if self.ascending and value != sorted(value):
            return False
        return len(value) >= self.least if self.length is None else len(value) == self.length

    def __str__(self) -> str:
        exactly = "any number" if not self.least else f"{self.least} or more"
        order = ", ascending" if self.ascending else ""
        return f"a list [...] of {self.length or exactly}{order}, each {self.kind}"


@dataclass(frozen=True)
class Part(Kind):
    """Mappings with a ``_target_``, from which an object is built."""

    def takes(self, value: Any) -> bool:
        """See ``Kind``."""
        return isinstance(value, Mapping) and isinstance(value.get("_target_"), str)

    def __str__(self) -> str:
        return "an option of its group, or a mapping with a _target_"


@dataclass(frozen=True)
class Group(Kind):
    """Mappings of any settings."""

    def takes(self, value: Any) -> bool:
        """See ``Kind``."""
        return isinstance(value, Mapping)

    def __str__(self) -> str:
        return "a mapping of settings"


NULL = OneOf(None)
AUTO = OneOf("auto")
FLAG, TEXT, PATH, PART, GROUP = Flag(), Text(), FilePath(), Part(), Group()
COUNT, INDEX = Whole(1), Whole(0)
SHARE, POSITIVE, WEIGHT = Real(0, 1), Real(0, above=True), Real(0)
PIXELS = Whole(1, 100_000)
