"""Where data comes from: callables that turn a root folder into two splits on the disk."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from codetr.data.box_formats import XYWH, require_box_format
from codetr.data.placement import AUTO
from codetr.errors import UserError

MAX_LOST = 0.5


def require_share(max_lost: float) -> None:
    """Raises UserError for a ``max_lost`` that is no share."""
    if not 0 <= max_lost <= 1:
        raise UserError(f"data.source.max_lost={max_lost}: give a share from 0 to 1")


def share_above(part: int, whole: int) -> float:
    """``part`` of ``whole`` in hundredths, rounded up."""
    return -(-100 * part // whole) / 100


@dataclass(frozen=True, kw_only=True)
class Split:
    """An annotation file in COCO format and the folder that its file names are relative to.

    ``name_parts``: only that many last parts of a file name or URL count (None: all). ``root``: the
    folder that file names must not lead out of, unless into ``images`` (None: they may).
    """

    annotations: Path
    images: Path
    name_parts: int | None = None
    root: Path | None = None

    def require_within(self, names: Sequence[str]) -> None:
        """Raises UserError for a name of an image that leads out of the root, by ``..`` or since it
        is absolute. Links are followed: who made the folder made them.
        """
        if self.root is None:
            return
        homes = [os.path.join(os.path.abspath(folder), "") for folder in (self.images, self.root)]
        for name in names:
            if ".." in name or os.path.isabs(name):
                path = os.path.abspath(os.path.join(self.images, name))
                if not any(path.startswith(home) for home in homes):
                    raise UserError(
                        f"{self.annotations}: names the image {reprlib.repr(name)}, which lies "
                        f"outside of data.root={self.root}: move it there, or allow it by "
                        "data.source.outside=true"
                    )


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The two splits that training takes; ``num_classes`` is what they must have (None: any), and
    ``max_lost`` the share of the boxes of a split that may be of no use; ``placed``: boxes are
    known to lie where the images are; ``box_format``: ``xywh`` where boxes are known to be so.

    ``remarks`` say what was recognised, ``problems`` what was wrong with it, each with its file.
    """

    train: Split
    val: Split
    num_classes: int | None = None
    max_lost: float = MAX_LOST
    placed: bool = False
    box_format: str = AUTO
    remarks: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class Source(Protocol):
    """Makes the data under a root folder if need be, and says where its splits are. Repeatable, and
    safe to call from several processes at once.
    """

    def __call__(self, root: Path, boxes: str = AUTO) -> Splits:
        """The splits; ``boxes`` says what boxes mean where sizes contradict each other
        (``codetr.data.placement``), for sources that place them.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class CocoFolder:
    """Data that is there already. Paths are relative to the root, or absolute.

    ``name_parts`` is that of ``Split``; ``num_classes``, ``max_lost`` and ``box_format`` are those
    of ``Splits``.
    With ``outside`` the annotations may name images that lie in neither the folder of images nor
    the root.
    """

    train_annotations: str = "annotations/instances_train2017.json"
    train_images: str = "train2017"
    val_annotations: str = "annotations/instances_val2017.json"
    val_images: str = "val2017"
    name_parts: int | None = None
    num_classes: int | None = None
    max_lost: float = MAX_LOST
    outside: bool = False
    box_format: str = AUTO

    def __post_init__(self) -> None:
        require_share(self.max_lost)
        require_box_format(self.box_format, (AUTO, XYWH))

    def __call__(self, root: Path, boxes: str = AUTO) -> Splits:
        """The two splits, their boxes not placed; whether they exist is seen when they are read."""
        return Splits(
            train=self._split(root, self.train_annotations, self.train_images),
            val=self._split(root, self.val_annotations, self.val_images),
            num_classes=self.num_classes,
            max_lost=self.max_lost,
            box_format=self.box_format,
        )

    def _split(self, root: Path, annotations: str, images: str) -> Split:
        return Split(
            annotations=root / annotations,
            images=root / images,
            name_parts=self.name_parts,
            root=None if self.outside else root,
        )
