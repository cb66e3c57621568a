"""Where data comes from: callables that turn a root folder into two splits on the disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Split:
    """An annotation file in COCO format and the folder that its file names are relative to."""

    annotations: Path
    images: Path


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The two splits that training takes."""

    train: Split
    val: Split


Source = Callable[[Path], Splits]
"""Makes the data under a root folder if need be, and says where its splits are. Repeatable, and
safe to call from several processes at once."""


@dataclass(frozen=True, kw_only=True)
class CocoFolder:
    """Data that is there already. Paths are relative to the root, or absolute."""

    train_annotations: str = "annotations/instances_train2017.json"
    train_images: str = "train2017"
    val_annotations: str = "annotations/instances_val2017.json"
    val_images: str = "val2017"

    def __call__(self, root: Path) -> Splits:
        """The two splits; whether they exist is seen when they are read."""
        return Splits(
            train=Split(annotations=root / self.train_annotations, images=root / self.train_images),
            val=Split(annotations=root / self.val_annotations, images=root / self.val_images),
        )
