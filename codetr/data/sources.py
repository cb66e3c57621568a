"""Data sources: callables that provide two splits on disk for a root folder."""

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
    """Raise UserError for a ``max_lost`` that is not between 0 and 1."""
    if not 0 <= max_lost <= 1:
        raise UserError(f"data.source.max_lost={max_lost}: give a share from 0 to 1")


def rounded_up_share(part: int, whole: int) -> float:
    """``part / whole`` rounded up to hundredths."""
    return -(-100 * part // whole) / 100


@dataclass(frozen=True, kw_only=True)
class Split:
    """An annotation file in COCO format and the folder that its file names are relative to.

    ``name_parts``: only that many last components of a file name or URL are used (None: all).
    ``root``: file names must stay within this folder or ``images`` (None: no restriction).
    """

    annotations: Path
    images: Path
    name_parts: int | None = None
    root: Path | None = None

    def require_within(self, names: Sequence[str]) -> None:
        """Raise UserError for an image name that leads out of the root, because it contains ``..``
        or is absolute. Symbolic links are followed: they belong to the owner of the folder.
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
                        f"outside of data.root={self.root}: move it there, or set "
                        "data.source.outside=true to allow it"
                    )


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits for training and validation. ``num_classes``: the required number of classes
    (None: any); ``max_lost``: the share of the boxes of a split that may be unusable; ``placed``:
    boxes are known to be in pixels of the upright images; ``box_format``: ``xywh`` if that is
    known.

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
    """Provides the splits below a root folder, creating them if need be. May be called repeatedly,
    and from several processes at once.
    """

    def __call__(self, root: Path, boxes: str = AUTO) -> Splits:
        """The splits; ``boxes`` is the interpretation of boxes if sizes contradict each other
        (``codetr.data.placement``), for sources that convert them.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class CocoFolder:
    """Existing data in COCO format. Paths are relative to the root, or absolute.

    For ``name_parts`` see ``Split``; for ``num_classes``, ``max_lost`` and ``box_format`` see
    ``Splits``. With ``outside`` the annotations may name images outside of the root and the folder
    of images.
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
        """The two splits, whose existence is not checked until they are read."""
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
