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
from codetr.data.box_formats import OUTSIDE_PX
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
class CocoAnnotations:
    """The content of one annotation file: I images and their A boxes, sorted by image.

    ``sizes`` (I, 2) int64 (height, width); ``boxes`` (A, 4) float32 xyxy pixels as in the file, not
    yet clipped or filtered; ``sides`` (A, 2) float64, their width and height as in the file;
    ``area`` (A,) float64 in square pixels, by default the product of the sides; ``labels`` (A,)
    int64 class indices; ``crowd`` and ``ignore`` (A,) bool; ``dropped`` (A,) bool: excluded from
    the targets by a training recipe (None: no box is); ``annotation_ids`` as in the file;
    ``written_ids`` of the images as in the file, strings where ``image_ids`` are hashes of them;
    image i owns the rows ``offsets[i]`` to ``offsets[i + 1]``; ``segmentations`` of all rows, if
    requested.
    """

    path: Path
    classes: ClassList
    image_ids: tuple[int, ...]
    written_ids: tuple[int | str, ...]
    file_names: tuple[str, ...]
    sizes: Tensor
    boxes: Tensor
    sides: Tensor
    area: Tensor
    labels: Tensor
    crowd: Tensor
    ignore: Tensor
    annotation_ids: tuple[Any, ...]
    offsets: Tensor
    segmentations: Segmentations | None = None
    dropped: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def image_of_box(self) -> Tensor:
        """(A,) image index of every box."""
        return torch.repeat_interleave(torch.arange(len(self)), self.offsets.diff())

    @property
    def boxes_xywh_px(self) -> NDArray[np.float64]:
        """(A, 4) corner and size in pixels, as in the file."""
        return torch.cat([self.boxes[:, :2].to(self.sides), self.sides], dim=1).double().numpy()

    @cached_property
    def clipped(self) -> Tensor:
        """(A, 4) ``boxes`` clipped to their images."""
        size_whwh = self.sizes.flip(1)[self.image_of_box].repeat(1, 2)
        return torch.minimum(self.boxes.clamp(min=0), size_whwh.to(self.boxes.dtype))

    @cached_property
    def degenerate(self) -> Tensor:
        """(A,) bool: not finite, or without area within the image."""
        area = (self.clipped[:, 2:] > self.clipped[:, :2]).all(dim=1)
        return ~(area & self.boxes.isfinite().all(dim=1))

    @property
    def without_area(self) -> Tensor:
        """(A,) bool: degenerate objects; crowd regions are not counted."""
        return self.degenerate & ~self.crowd

    @property
    def outside(self) -> Tensor:
        """(A,) bool: targets that reach beyond their image, by more than rounding explains."""
        return self.usable & ((self.boxes - self.clipped).abs().amax(dim=1) > OUTSIDE_PX)

    @cached_property
    def usable(self) -> Tensor:
        """(A,) bool: a target, that is neither a crowd region nor degenerate nor dropped."""
        left_out = self.crowd | self.degenerate
        return ~(left_out if self.dropped is None else left_out | self.dropped)

    def images_with_objects(self, count: int) -> list[int]:
        """``count`` evenly spaced images among those with usable boxes; all if there are fewer."""
        found = self.image_of_box[self.usable].unique().tolist()
        count = min(count, len(found))
        return [found[i * (len(found) - 1) // max(count - 1, 1)] for i in range(count)]

    def targets(self, index: int) -> BoxSet:
        """The targets of an image: the usable boxes, clipped to it, with masks if segmentations
        were loaded.
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
    """Parse a COCO- or LVIS-format file, including ``segmentations`` if requested. ``num_images``
    selects that many images with usable boxes, evenly spaced in the file (all images if none has
    boxes).

    The name of an image file is ``file_name``, or ``coco_url`` if there is none (LVIS v1);
    ``name_parts`` keeps only that many of its last path components.
    Classes are the categories sorted by id. A category without annotations that others have as
    their ``supercategory`` (the root that Roboflow exports add) is not a class, unless it is in
    ``classes`` (those of the training split). Raises UserError for a missing folder or file,
    invalid JSON, and invalid values (``codetr.data.json_columns``). With ``flaws``, images and
    annotations that cannot be used are skipped and described in that list instead.
    """
    content = require_lists(read_content(path), path)

    def note(flaw: Flaw) -> None:
        assert flaws is not None
        flaws.append(f"{flaw}; it was skipped")

    report = refuse if flaws is None else note
    names = read_categories(content, path)
    images = read_images(content, path, report, needed=("file_name", "height", "width"))
    objects = read_objects(content, path, images, names, report)
    if objects.outlined:
        log.info("%s: %d objects without bbox got that of their outline", path, objects.outlined)
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
        log.info("%s: category %d '%s' is a mere supercategory, not a class", path, i, names[i])
    ids = sorted(set(names) - set(parents))
    return ClassList(names=tuple(names[i] for i in ids), category_ids=tuple(ids))


def _only(
    images: CocoImages, objects: CocoObjects, chosen: Sequence[int]
) -> tuple[CocoImages, CocoObjects]:
    """The images ``chosen`` (in ascending order) and their objects."""
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
        sides=xywh[:, 2:],
        area=torch.from_numpy(objects.area),
        labels=torch.tensor([index[i] for i in objects.categories.tolist()], dtype=torch.int64),
        crowd=crowd,
        ignore=torch.from_numpy(objects.ignore),
        annotation_ids=tuple(entry.get("id") for entry in objects.entries),
        offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        segmentations=read_segmentations(objects.entries, crowd, sizes[image_of_box], path)
        if segmentations
        else None,
    )
