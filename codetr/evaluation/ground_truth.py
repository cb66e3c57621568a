"""The boxes to be found, read from a COCO annotation file (crowd regions and areas included)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr.classes import ClassList
from codetr.errors import UserError


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
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}): write it anew") from error


def read_ground_truth(path: Path, classes: ClassList) -> dict[int, ImageTruth]:
    """The annotations of every image of a COCO file, by image id; empty images are there too.

    Missing ``iscrowd`` counts as 0, missing ``area`` as the area of the box. Raises UserError
    where the file is not in COCO format or a category is not in the class list.
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
    box, category = annotation["bbox"], annotation["category_id"]
    if len(box) != 4:
        raise UserError(
            f"{path}: annotation {annotation.get('id')} has bbox {box}: give [x, y, width, height]"
        )
    if category not in index:
        raise UserError(
            f"{path}: annotation {annotation.get('id')} has category {category}, which is not a "
            "class of the model: evaluate on data with the model's classes"
        )
    area = annotation.get("area", box[2] * box[3])
    return [*box, index[category], annotation.get("iscrowd", 0), area]


def _image_truth(rows: list[list[float]]) -> ImageTruth:
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)
    return ImageTruth(
        boxes_xywh_px=table[:, :4],
        labels=table[:, 4].long(),
        crowd=table[:, 5].long(),
        area=table[:, 6],
    )
