"""A COCO-format folder as a dataset of samples."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from codetr.data.annotations import CocoAnnotations
from codetr.data.images import DEFAULT_RULES, ImageError, PixelRules, read_scaled, require_smaller
from codetr.data.resize import resize_nearest
from codetr.data.sample import BoxSet, Sample
from codetr.data.teachers import TeacherBoxes

log = logging.getLogger(__name__)

GREY = 114
"""Value of the pixels of padding before normalisation, and of placeholders for broken images."""


class CocoDetection(Dataset[Sample]):
    """The images of an annotation file, with or without boxes, in the order of the file.

    ``images`` is the folder that ``file_name`` is relative to. ``cache`` keeps every decoded image
    in the memory of its process: for small data only. Raises ImageError for files that are missing,
    damaged or of another size than annotated; with ``tolerate_broken`` such files are logged and
    replaced by a grey image without boxes. ``teachers`` provides the boxes of teacher detectors;
    ``rules`` say how files are decoded.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        images: Path,
        cache: bool = False,
        tolerate_broken: bool = False,
        teachers: TeacherBoxes | None = None,
        rules: PixelRules = DEFAULT_RULES,
    ) -> None:
        self.annotations = annotations
        self.images = images
        self.tolerate_broken = tolerate_broken
        self.teachers = teachers
        self.rules = rules
        self._cache: dict[int, Tensor] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image according to its annotation."""
        height, width = self.annotations.sizes[index].tolist()
        return height, width

    def sample(self, index: int, least: tuple[int, int] | None = None) -> Sample:
        """An image with its boxes. With ``least`` (height, width) a JPEG may be decoded at 1/2, 1/4
        or 1/8 of its size, but not smaller than ``least``; boxes and masks are scaled alike. Cached
        images are always decoded at full size.
        """
        broken = False
        try:
            image = self._image(index, least)
        except ImageError as error:
            if not self.tolerate_broken:
                raise
            require_smaller(self._path(index), self.size(index), self.rules)
            log.warning("%s; it is replaced by a grey image without boxes", error)
            image = torch.full((3, *self.size(index)), GREY, dtype=torch.uint8)
            broken = True
        targets = self.annotations.targets(index)  # draws masks, so the size is checked before
        teachers = () if self.teachers is None else self.teachers(index)
        if broken:
            targets = _none_of(targets)
            teachers = tuple(_none_of(boxes) for boxes in teachers)
        (height, width), (new_height, new_width) = self.size(index), image.shape[1:]
        return Sample(
            image=image,
            targets=_resized(targets, (height, width), (new_height, new_width)),
            teachers=tuple(
                _resized(boxes, (height, width), (new_height, new_width)) for boxes in teachers
            ),
            image_id=self.annotations.image_ids[index],
            original_size=(height, width),
            scale=(new_width / width, new_height / height),
            path=str(self._path(index)),
        )

    def _path(self, index: int) -> Path:
        return self.images / self.annotations.file_names[index]

    def _image(self, index: int, least: tuple[int, int] | None) -> Tensor:
        if self._cache is None:
            return self._read(index, least)
        if index not in self._cache:
            self._cache[index] = self._read(index, None)
        return self._cache[index]

    def _read(self, index: int, least: tuple[int, int] | None) -> Tensor:
        def accept(found: tuple[int, int]) -> None:
            height, width = self.size(index)
            if found != (height, width):
                raise ImageError(
                    f"image {self._path(index)} is {found[1]}x{found[0]} pixels (width x height, "
                    f"upright by EXIF) but {self.annotations.path} says {width}x{height}: correct "
                    "the annotation file or the image, or set data.boxes to upright, stored or "
                    "scaled"
                )

        return read_scaled(self._path(index), least, self.rules, accept)[0]


def _resized(boxes: BoxSet, size: tuple[int, int], new_size: tuple[int, int]) -> BoxSet:
    """The boxes of an image of ``size`` (height, width) that was decoded at ``new_size``."""
    if size == new_size:
        return boxes
    scale_yx = torch.tensor(new_size) / torch.tensor(size)
    return replace(
        boxes,
        boxes=boxes.boxes * scale_yx.flip(0).repeat(2),
        masks=None if boxes.masks is None else resize_nearest(boxes.masks, new_size),
    )


def _none_of(boxes: BoxSet) -> BoxSet:
    return boxes.select(torch.zeros(len(boxes), dtype=torch.bool))
