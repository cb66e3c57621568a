"""The result of reading an annotation format, before it is converted to COCO JSON."""

from __future__ import annotations

import reprlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codetr.data.formats.tree import split_of_folders


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem with a ``file`` (relative to the root), and how it was handled."""

    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Box:
    """``xyxy`` in pixels of the image, or in [0, 1] if its image says so; finite.

    ``category`` is an id of ``FolderContent.categories``; ``ignored`` boxes (crowds, difficult
    objects) are not targets, and evaluation ignores them; ``where`` identifies the box in messages;
    ``extra``: further keys of its COCO entry.
    """

    xyxy: tuple[float, float, float, float]
    category: int
    where: str
    ignored: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image ``file`` (relative to the root) and its boxes, read from the file ``source``.

    ``declared_wh`` is the size in the annotations, if any; ``relative``: boxes are fractions of the
    image's width and height; ``number`` is the image's id in the file, unique within a split, if
    the format has ids; ``flawed``: number of its boxes that cannot be read.
    """

    file: str
    source: str
    boxes: tuple[Box, ...]
    declared_wh: tuple[int, int] | None = None
    relative: bool = False
    number: int | str | None = None
    flawed: int = 0


@dataclass(frozen=True, kw_only=True)
class SplitContent:
    """The usable ``images`` of a split; a problem for each image in its annotations that is
    ``lost``, since it cannot be used; and the number of ``flawed`` boxes, which cannot be read and
    whose image is unknown.
    """

    images: Sequence[LabelledImage] = ()
    lost: Sequence[Problem] = ()
    flawed: int = 0


@dataclass(frozen=True, kw_only=True)
class FolderContent:
    """The content of a folder in one of the formats.

    ``splits`` are named train, val, test, ..., or ``unsplit``. ``categories``: names by id.
    ``remarks`` are for the user; ``problems`` are all problems, including those of lost images.
    """

    splits: Mapping[str, SplitContent]
    categories: Mapping[int, str]
    remarks: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


UNSPLIT = "unsplit"
"""Name of the split of images that belong to no split."""


def by_split(
    images: Mapping[str, Sequence[LabelledImage]], lost: Mapping[str, Sequence[Problem]]
) -> dict[str, SplitContent]:
    """The splits that have ``images`` or ``lost`` ones."""
    names = dict.fromkeys([*images, *lost])
    found = {n: SplitContent(images=images.get(n, ()), lost=lost.get(n, ())) for n in names}
    return {name: split for name, split in found.items() if split.images or split.lost}


def by_folder(images: Iterable[LabelledImage], lost: Iterable[Problem]) -> dict[str, SplitContent]:
    """The splits by the names of the folders of annotation files."""
    found: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in images:
        found[split_of_folders(image.source) or UNSPLIT].append(image)
    problems: dict[str, list[Problem]] = defaultdict(list)
    for problem in lost:
        problems[split_of_folders(problem.file) or UNSPLIT].append(problem)
    return by_split(found, problems)


def short_repr(value: Any) -> str:
    """A short representation of any value on one line, for messages."""
    return reprlib.repr(value)


def one_line(name: str) -> str:
    """A name without line breaks and surrounding whitespace."""
    return " ".join(part for line in name.splitlines() if (part := line.strip()))
