"""What the readers of annotation formats return, before it is converted to COCO JSON."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with a ``file`` (relative to the root), and what was done about it."""

    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Box:
    """``xyxy`` in pixels of the upright image, or in [0, 1] of it as its image says; finite.

    ``category`` is an id of ``FolderContent.categories``; ``ignored`` boxes (crowds, difficult
    objects) are no targets and cost nothing in evaluation; ``where`` names the box in messages;
    ``extra`` are further keys of its COCO entry.
    """

    xyxy: tuple[float, float, float, float]
    category: int
    where: str
    ignored: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image ``file`` (relative to the root) and its boxes, read from the file ``source``.

    ``declared_wh`` is the size that the annotations claim, if they do; ``relative``: the boxes
    are shares of the image's width and height; ``number`` is the image's id as written, where the
    format has one: unique within a split; ``flawed`` counts its boxes that cannot be read.
    """

    file: str
    source: str
    boxes: tuple[Box, ...]
    declared_wh: tuple[int, int] | None = None
    relative: bool = False
    number: int | str | None = None
    flawed: int = 0


@dataclass(frozen=True, kw_only=True)
class FolderContent:
    """The content of a folder in one of the formats.

    ``splits``: images by split name (train, val, test, ...); ``unsplit`` where the folder does not
    divide them. ``lost``: by split too, a problem for every image that the annotations name and
    that cannot be used; ``flawed``: the number of boxes that cannot be read, where it is not known
    of which image they are. ``categories``: names by id. ``remarks`` are what a user should know;
    ``problems`` are all that there are, also those of ``lost``.
    """

    splits: Mapping[str, Sequence[LabelledImage]]
    categories: Mapping[int, str]
    lost: Mapping[str, Sequence[Problem]] = field(default_factory=dict)
    flawed: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


UNSPLIT = "unsplit"
"""The name of the images that no split has."""


def finite(values: Sequence[Any]) -> bool:
    """Are all of ``values`` numbers (no bool, no text), none of them infinite or NaN?"""
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
        for value in values
    )


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def shown(value: Any) -> str:
    """A value of a file for a message: short and on one line, whatever it is."""
    return reprlib.repr(value)


def one_line(name: str) -> str:
    """A name as it is written, without blanks around it, and in one line."""
    return " ".join(part for line in name.splitlines() if (part := line.strip()))
