"""Which images of a folder are for training, and which for validation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codetr.data.formats.content import UNSPLIT, LabelledImage, SplitContent
from codetr.data.formats.tree import SPARE
from codetr.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SplitChoice:
    """The names of the splits to train on and to validate on. If the data has no val, it is the
    share ``val_share`` of train, drawn by ``seed``.
    """

    train: str
    val: str
    val_share: float
    seed: int

    def __call__(
        self, root: Path, splits: Mapping[str, SplitContent]
    ) -> tuple[SplitContent, SplitContent, list[str]]:
        """The splits for training and validation of a folder with ``splits``, and remarks about
        them. Raises UserError if one of them is missing or none of its images can be used.
        """
        splits, renamed = self._renamed(splits)
        splits, divided = self._with_val(splits)
        for name in (self.train, self.val):
            _require_images(root, name, splits)
        train, val = splits[self.train], splits[self.val]
        counts = ", ".join(f"{name} {len(split.images)}" for name, split in splits.items())
        chosen = f"images: {counts}; training on {self.train}, validating on {self.val}"
        unused = None if UNSPLIT in (self.train, self.val) else splits.get(UNSPLIT)
        return train, val, [*renamed, *divided, chosen, *_shared(train, val), *_unused(unused)]

    def _renamed(
        self, splits: Mapping[str, SplitContent]
    ) -> tuple[dict[str, SplitContent], list[str]]:
        """``unsplit`` is train if no split is named that, and a spare split is val."""
        found, remarks = dict(splits), []
        spare = next((name for name in SPARE if name in found), None)
        if spare and "val" not in found and self.val == "val" and self.train != spare:
            alone = not found.keys() & {self.train, UNSPLIT}  # then the data is not split
            found[UNSPLIT if alone else "val"] = found.pop(spare)
            if not alone:
                remarks.append(
                    f"the split '{spare}' is used as val, since there is none of that name"
                )
        if "train" not in found and UNSPLIT in found:
            found["train"] = found.pop(UNSPLIT)
        return found, remarks

    def _with_val(
        self, splits: dict[str, SplitContent]
    ) -> tuple[dict[str, SplitContent], list[str]]:
        """A part of train is val if the data has no val, and it is asked for."""
        train = splits.get("train")
        if "val" in splits or "val" not in (self.train, self.val) or not (train and train.images):
            return splits, []
        remark = (
            f"split {len(train.images)} images at random, {self.val_share:.0%} for val, with "
            f"data.source.seed={self.seed}"
        )
        return splits | divide(train, self.val_share, self.seed), [remark]


def divide(split: SplitContent, val_share: float, seed: int) -> dict[str, SplitContent]:
    """Split images at random into ``train`` and ``val``, depending on ``seed`` but not on their
    order; what was lost is distributed in proportion. Raises UserError for fewer than two images.
    """
    count = len(split.images)
    if count < 2:
        raise UserError(
            f"{count} annotated images cannot be split into train and val: add images, or "
            "a folder or list for each split, or validate on them too with data.source.val=train"
        )
    shuffled = _by_file(split.images)
    random.Random(seed).shuffle(shuffled)
    of_val = min(max(round(val_share * count), 1), count - 1)
    share = (count - of_val) / count
    lost, flawed = round(len(split.lost) * share), round(split.flawed * share)
    return {
        "train": SplitContent(
            images=_by_file(shuffled[of_val:]), lost=split.lost[:lost], flawed=flawed
        ),
        "val": SplitContent(
            images=_by_file(shuffled[:of_val]), lost=split.lost[lost:], flawed=split.flawed - flawed
        ),
    }


def _by_file(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    return sorted(images, key=lambda image: image.file)


def _require_images(root: Path, name: str, splits: Mapping[str, SplitContent]) -> None:
    split = splits.get(name, SplitContent())
    if split.images:
        return
    if split.lost:
        raise UserError(
            f"none of the {len(split.lost)} images of the split '{name}' of {root} can be used; "
            f"the first one: {split.lost[0]}"
        )
    raise UserError(
        f"{root} has no images for the split '{name}', only for "
        f"{', '.join(splits)}: name one with data.source.train or data.source.val"
    )


def _shared(train: SplitContent, val: SplitContent) -> list[str]:
    """A remark about images that are in both."""
    if train is val:
        return ["validating on the training images: results are too good"]
    shared = {image.file for image in train.images} & {image.file for image in val.images}
    if shared:
        return [f"{len(shared)} images are in both splits: results will be too good"]
    return []


def _unused(split: SplitContent | None) -> list[str]:
    """A remark about the images of ``unsplit`` where other splits are chosen."""
    if split is None or not split.images:
        return []
    return [
        f"{len(split.images)} images belong to no split and are not used: set "
        f"data.source.val={UNSPLIT}, or rename their folder or file to train or val"
    ]
