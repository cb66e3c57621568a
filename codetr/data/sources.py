"""Where data comes from: callables that turn a root folder into two splits on the disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Split:
    """An annotation file in COCO format and the folder that its file names are relative to.

    ``name_parts``: only that many last parts of a file name or URL count (None: all).
    """

    annotations: Path
    images: Path
    name_parts: int | None = None


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The two splits that training takes; ``num_classes`` is what they must have (None: any).

    ``remarks`` say what was recognised, ``problems`` what was wrong with it, each with its file.
    """

    train: Split
    val: Split
    num_classes: int | None = None
    remarks: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


Source = Callable[[Path], Splits]
"""Makes the data under a root folder if need be, and says where its splits are. Repeatable, and
safe to call from several processes at once."""


@dataclass(frozen=True, kw_only=True)
class CocoFolder:
    """Data that is there already. Paths are relative to the root, or absolute.

    ``name_parts`` and ``num_classes`` are those of ``Split`` and ``Splits``.
    """

    train_annotations: str = "annotations/instances_train2017.json"
    train_images: str = "train2017"
    val_annotations: str = "annotations/instances_val2017.json"
    val_images: str = "val2017"
    name_parts: int | None = None
    num_classes: int | None = None

    def __call__(self, root: Path) -> Splits:
        """The two splits; whether they exist is seen when they are read."""
        return Splits(
            train=self._split(root, self.train_annotations, self.train_images),
            val=self._split(root, self.val_annotations, self.val_images),
            num_classes=self.num_classes,
        )

    def _split(self, root: Path, annotations: str, images: str) -> Split:
        return Split(
            annotations=root / annotations, images=root / images, name_parts=self.name_parts
        )
