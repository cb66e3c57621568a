"""Conversion of labelled images to valid COCO annotations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr.data.box_formats import OUTSIDE_PX
from codetr.data.formats.content import Box, LabelledImage, Problem
from codetr.data.images import Geometry, ImageError, read_geometry
from codetr.data.json_columns import number_of
from codetr.data.placement import AUTO, Claim, Placement, place

Content = dict[str, Any]
Advance = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class CocoWriter:
    """Converts labelled images below ``root`` to the content of a COCO file.

    Image sizes are those of the files; ``boxes`` says how boxes are interpreted if the annotations
    declare other sizes (``codetr.data.placement``). Boxes are clipped to their image; those without
    area in it are skipped, as are images whose files cannot be read. Each of these is added to
    ``problems``; ``remarks`` say how boxes were interpreted.
    """

    root: Path
    categories: Mapping[int, str]
    problems: list[Problem]
    boxes: str = AUTO
    remarks: list[str] = field(default_factory=list)

    def contents(
        self, parts: Sequence[Sequence[LabelledImage]], advance: Advance = lambda: None
    ) -> list[Content]:
        """The content of a COCO file for each part. Images keep their ids, or get the hash of their
        file names, so that results by id (teachers' boxes) stay valid when images are added or
        split differently; annotations are numbered from 1. ``advance`` is called after every image.

        Raises UserError if the interpretation of boxes is ambiguous.
        """
        geometries: dict[str, Geometry] = {}
        for file in dict.fromkeys(image.file for images in parts for image in images):
            try:
                geometries[file] = read_geometry(self.root / file)
            except ImageError as error:
                self._report(file, f"{error}; it was skipped")
            advance()
        usable = [[image for image in images if image.file in geometries] for images in parts]
        flat = [image for images in usable for image in images]
        placements, remarks = place([_claim(i, geometries[i.file]) for i in flat], self.boxes)
        self.remarks.extend(remarks)
        placed = iter(placements)
        return [
            self._content([(i, geometries[i.file], next(placed)) for i in images])
            for images in usable
        ]

    def _content(self, images: Sequence[tuple[LabelledImage, Geometry, Placement]]) -> Content:
        entries: list[Content] = []
        used: set[int | str] = set()
        annotations: list[Content] = []
        for image, (size, _), placement in images:
            number = number_of(image.file) if image.number is None else image.number
            while number in used and isinstance(number, int):  # a file twice, or a collision
                number += 1
            used.add(number)
            height, width = size
            entries.append(
                {"id": number, "file_name": image.file, "height": height, "width": width}
            )
            for entry in self._annotations(image, (width, height), placement):
                annotations.append({"id": len(annotations) + 1, "image_id": number, **entry})
        categories = [{"id": i, "name": name} for i, name in self.categories.items()]
        return {"images": entries, "annotations": annotations, "categories": categories}

    def _annotations(
        self, image: LabelledImage, size_wh: tuple[int, int], placement: Placement
    ) -> list[Content]:
        found = []
        corners = placement.corners(_corners(image)).tolist()
        for box, (x0, y0, x1, y1) in zip(image.boxes, corners, strict=True):
            clipped = self._clipped((x0, y0, x1, y1), size_wh, box, image)
            if clipped is not None:
                found.append(_entry(box, clipped, placement))
        return found

    def _clipped(
        self,
        corners: tuple[float, float, float, float],
        size_wh: tuple[int, int],
        box: Box,
        image: LabelledImage,
    ) -> tuple[float, float, float, float] | None:
        """The part of the box within the image; None if there is none."""
        written = "(" + ", ".join(f"{v:.6g}" for v in corners) + ")"
        width, height = size_wh
        x0, x1 = (min(max(x, 0.0), float(width)) for x in corners[::2])
        y0, y1 = (min(max(y, 0.0), float(height)) for y in corners[1::2])
        reason = None
        if not all(map(math.isfinite, corners)):
            reason = "is not finite"
        elif corners[2] <= corners[0] or corners[3] <= corners[1]:
            reason = "has no area"
        elif x1 <= x0 or y1 <= y0:
            reason = f"lies outside the image of {width}x{height}"
        if reason:
            self._report(image.source, f"{box.where} with xyxy {written} {reason}; it was skipped")
            return None
        beyond = max(abs(c - k) for c, k in zip(corners, (x0, y0, x1, y1), strict=True))
        if beyond > OUTSIDE_PX:
            text = f"{box.where} with xyxy {written} reaches beyond the image of {width}x{height}"
            self._report(image.source, f"{text}; it was clipped")
        return x0, y0, x1, y1

    def _report(self, file: str, text: str) -> None:
        self.problems.append(Problem(file=file, text=text))


def _corners(image: LabelledImage) -> NDArray[np.float64]:
    return np.array([box.xyxy for box in image.boxes], np.float64).reshape(-1, 4)


def _claim(image: LabelledImage, geometry: Geometry) -> Claim:
    return Claim(
        file=image.file,
        declared_wh=image.declared_wh,
        corners=_corners(image),
        geometry=geometry,
        relative=image.relative,
    )


def _entry(box: Box, corners: tuple[float, float, float, float], placement: Placement) -> Content:
    """An annotation without its ids; ``area`` is that of the mask if the data has it."""
    x0, y0, x1, y1 = corners
    bbox = [round(v, 4) for v in (x0, y0, x1 - x0, y1 - y0)]
    area, extra = box.extra.get("area"), dict(box.extra)
    if area is None or not 0 < area < math.inf:
        area = round((x1 - x0) * (y1 - y0), 4)
    elif not placement.is_identity:
        area = round(area * placement.area, 4)
    if "segmentation" in extra:
        outline = placement.segmentation(extra.pop("segmentation"))
        extra |= {} if outline is None else {"segmentation": outline}
    return {
        **extra,
        "category_id": box.category,
        "bbox": bbox,
        "area": area,
        "iscrowd": int(box.ignored),
    }
