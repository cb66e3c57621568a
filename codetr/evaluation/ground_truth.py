"""The boxes to be found, read from a COCO annotation file (crowd regions and areas included)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown  # short, whatever the file holds
from typing import Any

import torch
from torch import Tensor

from codetr.classes import ClassList
from codetr.errors import UserError
from codetr.json_text import parse_json


@dataclass(frozen=True, kw_only=True)
class ImageTruth:
    """The annotations of one image.

    ``boxes_xywh_px`` (n, 4) float64, corner and size in pixels; ``labels`` (n,) int64 contiguous;
    ``crowd`` (n,) int64, 1 = region with many objects that is ignored in matching; ``area`` (n,)
    float64 in px^2, of the object (not the box), which decides between small, medium and large.
    """

    boxes_xywh_px: Tensor
    labels: Tensor
    crowd: Tensor
    area: Tensor


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError where it is missing or broken."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    return parse_json(content, str(path))


def read_ground_truth(path: Path, classes: ClassList) -> dict[int, ImageTruth]:
    """The annotations of every image of a COCO file, by image id; empty images are there too.

    Missing or null ``iscrowd`` counts as 0, missing or null ``area`` as the area of the box. Raises
    UserError where the file is not in COCO format or a category is not in the class list.
    """
    content = read_json(path)
    if not (isinstance(content, dict) and {"images", "annotations"} <= content.keys()):
        raise UserError(f"{path}: has no 'images' and 'annotations': give a COCO annotation file")
    rows: dict[int, list[list[float]]] = defaultdict(list)
    index = classes.index()
    try:
        for annotation in content["annotations"]:
            rows[annotation["image_id"]].append(_annotation_row(annotation, index, path))
        return {image["id"]: _image_truth(rows.get(image["id"], [])) for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: an image or annotation is malformed ({error!r}): images need 'id', "
            "annotations need 'image_id', 'category_id' and 'bbox'"
        ) from error


def _annotation_row(
    annotation: Mapping[str, Any], index: Mapping[int, int], path: Path
) -> list[float]:
    """x, y, w, h, label, crowd, area."""
    box, category, area = annotation["bbox"], annotation["category_id"], annotation.get("area")
    which = f"{path}: annotation {shown(annotation.get('id'))}"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise UserError(f"{which} has bbox {shown(box)}: give [x, y, width, height]")
    if category not in index:
        raise UserError(
            f"{which} has category {shown(category)}, which is not a class of the model: evaluate "
            "on data with the model's classes"
        )
    if area is None:
        area = box[2] * box[3]
    elif not _is_number(area):
        raise UserError(f"{which} has area {shown(area)}: give a number of pixels, or leave it out")
    return [*box, index[category], bool(annotation.get("iscrowd")), area]


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _image_truth(rows: list[list[float]]) -> ImageTruth:
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)
    return ImageTruth(
        boxes_xywh_px=table[:, :4],
        labels=table[:, 4].long(),
        crowd=table[:, 5].long(),
        area=table[:, 6],
    )
