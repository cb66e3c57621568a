"""The ground truth of an evaluation, from a COCO annotation file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr.classes import ClassList
from codetr.data.coco_json import (
    CocoImages,
    CocoObjects,
    read_images,
    read_objects,
    require_lists,
)
from codetr.data.segmentation import RunLengths
from codetr.errors import UserError
from codetr.evaluation.encoding import encode_segmentation
from codetr.json_text import parse_json


@dataclass(frozen=True, kw_only=True)
class ImageTruth:
    """The n annotations of one image.

    ``boxes_xywh_px`` (n, 4) float64, top left corner and size; ``labels`` (n,) int64, class
    indices; ``crowd`` (n,) int64, 1 for crowd regions; ``area`` (n,) float64 in px^2, of the object
    (not the box), by which objects are small, medium or large; ``masks`` (n): run lengths, if
    requested; ``name``: the image id in the file, if it is a text.
    """

    boxes_xywh_px: Tensor
    labels: Tensor
    crowd: Tensor
    area: Tensor
    masks: tuple[RunLengths, ...] | None = None
    name: str | None = None


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError where it is missing or broken."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    return parse_json(content, str(path))


def read_ground_truth(path: Path, classes: ClassList, masks: bool = False) -> dict[int, ImageTruth]:
    """The annotations of each image of a COCO file by image id, including images without objects;
    with ``masks``, their masks too.

    A missing or null ``iscrowd`` means 0, a missing or null ``area`` the area of the box. Raises
    UserError where the file is not in COCO format, a value is invalid, a category is not in the
    class list, or a requested mask is missing.
    """
    content = require_lists(read_json(path), path, ("images", "annotations"))
    images = read_images(content, path)
    index = classes.index()
    unknown = "is not a class of the model: evaluate on data with the model's classes"
    objects = read_objects(content, path, images, index, unknown=unknown)
    objects = objects.take(objects.images.argsort(kind="stable"))
    labels = np.array([index[i] for i in objects.categories.tolist()], np.int64)
    counts = np.bincount(objects.images, minlength=len(images.ids)).tolist()
    columns = (objects.boxes_xywh_px, labels, objects.crowd.astype(np.int64), objects.area)
    by_image = zip(*(torch.from_numpy(column).split(counts) for column in columns), strict=True)
    encoded = _encoded_masks(objects, images, path) if masks else None
    ends = np.cumsum(counts).tolist()
    return {
        number: ImageTruth(
            boxes_xywh_px=boxes,
            labels=label,
            crowd=crowd,
            area=area,
            masks=None if encoded is None else tuple(encoded[end - len(label) : end]),
            name=written if isinstance(written, str) else None,
        )
        for number, written, (boxes, label, crowd, area), end in zip(
            images.ids, images.written_ids, by_image, ends, strict=True
        )
    }


def _encoded_masks(objects: CocoObjects, images: CocoImages, path: Path) -> list[RunLengths]:
    """The masks of ``objects``, in their order."""
    sizes, found = images.sizes.tolist(), []
    for entry, image in zip(objects.entries, objects.images.tolist(), strict=True):
        height, width = sizes[image]
        try:
            if min(height, width) < 1:
                raise ValueError("its image has no height and width")
            found.append(encode_segmentation(entry.get("segmentation"), (height, width)))
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise UserError(
                f"annotation {entry.get('id')} in {path} has no usable segmentation ({error}), "
                "with which masks could be measured: add polygons or run lengths, or set "
                "evaluation.masks=false"
            ) from None
    return found
