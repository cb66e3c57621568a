"""Reading COCO-format annotation files, with errors that a user can act on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codetr.classes import ClassList
from codetr.data.coco_json import (
    CocoImages,
    CocoObjects,
    read_categories,
    read_images,
    read_objects,
    require_lists,
    unused_parents,
)
from codetr.data.derived import read_content
from codetr.data.json_columns import Flaw, refuse
from codetr.data.sample import BoxSet
from codetr.data.segmentation import Segmentations, read_segmentations

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What A annotations say beside their boxes: ``sides`` (A, 2) float64, width and height in
    pixels before they were added to a corner; ``area`` (A,) float64 in pixels, the product of both
    where there is none; ``ignore`` (A,) bool.
    """

    sides: Tensor
    area: Tensor
    ignore: Tensor


@dataclass(frozen=True, kw_only=True)
class CocoAnnotations:
    """The content of one annotation file: I images and their A boxes, sorted by image.

    ``sizes`` (I, 2) int64 (height, width); ``boxes`` (A, 4) float32 xyxy pixels as written, not
    yet clipped or filtered; ``labels`` (A,) int64 class indices; ``crowd`` (A,) bool; ``written``
    what else the file says; ``dropped`` (A,) bool: left out of the targets by a rule of the
    training (None: none); ``annotation_ids`` as in the file; ``written_ids`` those of the images,
    which are texts where ``image_ids`` are made of names; image i owns the rows ``offsets[i]`` to
    ``offsets[i + 1]``; ``segmentations`` of all rows, where they were asked for.
    """

    path: Path
    classes: ClassList
    image_ids: tuple[int, ...]
    written_ids: tuple[int | str, ...]
    file_names: tuple[str, ...]
    sizes: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    written: Written
    annotation_ids: tuple[Any, ...]
    offsets: Tensor
    segmentations: Segmentations | None = None
    dropped: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def image_of_box(self) -> Tensor:
        """(A,) the image index of every box."""
        return torch.repeat_interleave(torch.arange(len(self)), self.offsets.diff())

    @property
    def boxes_xywh_px(self) -> NDArray[np.float64]:
        """(A, 4) corner and size in pixels, as written."""
        sides = self.written.sides
        return torch.cat([self.boxes[:, :2].to(sides.dtype), sides], dim=1).double().numpy()

    @cached_property
    def clipped(self) -> Tensor:
        """(A, 4) ``boxes``, each clipped to its image."""
        size_whwh = self.sizes.flip(1)[self.image_of_box].repeat(1, 2)
        return torch.minimum(self.boxes.clamp(min=0), size_whwh.to(self.boxes.dtype))

    @cached_property
    def degenerate(self) -> Tensor:
        """(A,) bool: not finite as written, or without area within the image."""
        area = (self.clipped[:, 2:] > self.clipped[:, :2]).all(dim=1)
        return ~(area & self.boxes.isfinite().all(dim=1))

    @cached_property
    def usable(self) -> Tensor:
        """(A,) bool: neither a crowd region nor degenerate nor dropped, so a target."""
        left_out = self.crowd | self.degenerate
        return ~(left_out if self.dropped is None else left_out | self.dropped)

    def images_with_objects(self, count: int) -> list[int]:
        """``count`` of the images that have usable boxes, the first to the last of them evenly
        spaced; all if there are fewer.
        """
        found = self.image_of_box[self.usable].unique().tolist()
        count = min(count, len(found))
        return [found[i * (len(found) - 1) // max(count - 1, 1)] for i in range(count)]

    def targets(self, index: int) -> BoxSet:
        """The boxes that supervise an image: the usable ones, clipped to it, with masks where the
        segmentations were asked for.
        """
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        keep = self.usable[rows]
        found = BoxSet.ground_truth(self.clipped[rows][keep], self.labels[rows][keep])
        if self.segmentations is None:
            return found
        height, width = self.sizes[index].tolist()
        chosen = (keep.nonzero().flatten() + rows.start).tolist()
        return replace(found, masks=self.segmentations.masks(chosen, (height, width)))


def load_annotations(
    path: Path,
    classes: ClassList | None = None,
    name_parts: int | None = None,
    segmentations: bool = False,
    num_images: int | None = None,
    flaws: list[str] | None = None,
) -> CocoAnnotations:
    """Parse a COCO- or LVIS-format file; ``segmentations`` too if they are wanted. With
    ``num_images`` only so many images with usable boxes, spread evenly over the file (all images
    where none has one).

    A file's name is ``file_name``, or ``coco_url`` where there is none (LVIS v1); with
    ``name_parts`` only so many of its last parts.
    Classes are its categories, sorted by id. A category without annotations that others name as
    their ``supercategory`` (the root that Roboflow exports add) is no class, unless ``classes``
    (those of the training split) has it. Raises UserError for a missing folder or file, broken
    JSON, and values that cannot be meant (``codetr.data.json_columns``). With ``flaws``, to look
    at data, images and annotations that cannot be used are left out, and said there.
    """
    content = require_lists(read_content(path), path)

    def note(flaw: Flaw) -> None:
        assert flaws is not None
        flaws.append(f"{flaw}; it was left out")

    report = refuse if flaws is None else note
    names = read_categories(content, path)
    images = read_images(content, path, report, needed=("file_name", "height", "width"))
    objects = read_objects(content, path, images, names, report)
    if objects.outlined:
        log.info("%s: %d objects have no box but that of their outline", path, objects.outlined)
    found = _class_list(content, names, objects, classes, path)
    if num_images is not None:
        everything = _arranged(path, found, name_parts, images, objects)
        chosen = everything.images_with_objects(num_images)
        if chosen:
            images, objects = _only(images, objects, chosen)
    return _arranged(path, found, name_parts, images, objects, segmentations)


def _class_list(
    content: Mapping[str, list[Any]],
    names: Mapping[int, str],
    objects: CocoObjects,
    required: ClassList | None,
    path: Path,
) -> ClassList:
    used = {*objects.categories.tolist(), *(required.category_ids if required else ())}
    parents = unused_parents([content], names, used)
    for i in parents:
        log.info("%s: category %d '%s' is only a parent of others, no class", path, i, names[i])
    ids = sorted(set(names) - set(parents))
    return ClassList(names=tuple(names[i] for i in ids), category_ids=tuple(ids))


def _only(
    images: CocoImages, objects: CocoObjects, chosen: Sequence[int]
) -> tuple[CocoImages, CocoObjects]:
    """The images ``chosen`` (ascending), and what is on them."""
    place = np.full(len(images.ids), -1)
    place[chosen] = np.arange(len(chosen))
    kept = objects.take(np.flatnonzero(place[objects.images] >= 0))
    return images.take(chosen), replace(kept, images=place[kept.images])


def _arranged(
    path: Path,
    classes: ClassList,
    name_parts: int | None,
    images: CocoImages,
    objects: CocoObjects,
    segmentations: bool = False,
) -> CocoAnnotations:
    """The entries of a file, sorted by image."""
    objects = objects.take(objects.images.argsort(kind="stable"))
    image_of_box = torch.from_numpy(objects.images)
    counts = torch.bincount(image_of_box, minlength=len(images.ids))
    sizes = torch.from_numpy(images.sizes)
    index = classes.index()
    crowd = torch.from_numpy(objects.crowd)
    xywh = torch.from_numpy(objects.boxes_xywh_px)
    names = images.file_names
    if name_parts is not None:
        names = tuple("/".join(name.split("/")[-name_parts:]) for name in names)
    return CocoAnnotations(
        path=path,
        classes=classes,
        image_ids=images.ids,
        written_ids=images.written_ids,
        file_names=names,
        sizes=sizes,
        boxes=torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1).float(),
        labels=torch.tensor([index[i] for i in objects.categories.tolist()], dtype=torch.int64),
        crowd=crowd,
        written=Written(
            sides=xywh[:, 2:],
            area=torch.from_numpy(objects.area),
            ignore=torch.from_numpy(objects.ignore),
        ),
        annotation_ids=tuple(entry.get("id") for entry in objects.entries),
        offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        segmentations=read_segmentations(objects.entries, crowd, sizes[image_of_box], path)
        if segmentations
        else None,
    )
