"""From what was found in a folder to COCO annotations that nothing is wrong with."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr.data.formats.found import Box, LabelledImage, Problem, finite
from codetr.data.images import ImageError, read_size
from codetr.errors import UserError

Content = dict[str, Any]
Advance = Callable[[], None]

_OUTSIDE_PX = 1.0  # annotation tools round: less than this beyond the border is not worth a line


def divide(
    images: Sequence[LabelledImage], val_share: float, seed: int
) -> dict[str, list[LabelledImage]]:
    """``train`` and ``val`` of images that nobody has divided: at random by ``seed``, whatever
    their order. Raises UserError for fewer than two.
    """
    if len(images) < 2:
        raise UserError(
            f"{len(images)} annotated images cannot be divided into train and val: add images, or "
            "a folder or list for each split, or validate on them too with data.source.val=train"
        )
    shuffled = sorted(images, key=lambda image: image.file)
    random.Random(seed).shuffle(shuffled)
    count = min(max(round(val_share * len(shuffled)), 1), len(shuffled) - 1)
    by_name = {"train": shuffled[count:], "val": shuffled[:count]}
    return {name: sorted(part, key=lambda image: image.file) for name, part in by_name.items()}


@dataclass(frozen=True, kw_only=True)
class CocoWriter:
    """Turns labelled images below ``root`` into the content of a COCO file.

    Image sizes are those of the files. Boxes are clipped to their image; those without area in it
    are left out, as are images whose files cannot be read. All of that goes to ``problems``.
    """

    root: Path
    categories: Mapping[int, str]
    problems: list[Problem]

    def content(self, images: Sequence[LabelledImage], advance: Advance = lambda: None) -> Content:
        """Images keep their ids, or get ``image_number``; annotations are numbered from 1.
        ``advance`` is called after every image.
        """
        entries: list[Content] = []
        used: set[int] = set()
        annotations: list[Content] = []
        for image in images:
            try:
                height, width = read_size(self.root / image.file)
            except ImageError as error:
                self._report(image.file, f"{error}; it was left out")
            else:
                number = image_number(image.file) if image.number is None else image.number
                while number in used:  # a file that stands twice, or a collision
                    number += 1
                used.add(number)
                entries.append(
                    {"id": number, "file_name": image.file, "height": height, "width": width}
                )
                for entry in self._annotations(image, (width, height)):
                    annotations.append({"id": len(annotations) + 1, "image_id": number, **entry})
            advance()
        categories = [{"id": i, "name": name} for i, name in self.categories.items()]
        return {"images": entries, "annotations": annotations, "categories": categories}

    def _annotations(self, image: LabelledImage, size_wh: tuple[int, int]) -> list[Content]:
        if image.declared_wh not in (None, size_wh):
            told, real = ("x".join(map(str, s)) for s in (image.declared_wh or (), size_wh))
            text = f"says {told} pixels, but {image.file} has {real} (upright); boxes were kept"
            self._report(image.source, text)
        scale = size_wh if image.relative else (1, 1)
        found = []
        for box in image.boxes:
            x0, y0, x1, y1 = (v * s for v, s in zip(box.xyxy, scale * 2, strict=True))
            clipped = self._clipped((x0, y0, x1, y1), size_wh, box, image)
            if clipped is not None:
                found.append(_entry(box, clipped))
        return found

    def _clipped(
        self,
        corners: tuple[float, float, float, float],
        size_wh: tuple[int, int],
        box: Box,
        image: LabelledImage,
    ) -> tuple[float, float, float, float] | None:
        """The part of the box within the image; None where there is no such part."""
        told = "(" + ", ".join(f"{v:.6g}" for v in corners) + ")"
        width, height = size_wh
        x0, x1 = (min(max(x, 0.0), float(width)) for x in corners[::2])
        y0, y1 = (min(max(y, 0.0), float(height)) for y in corners[1::2])
        reason = None
        if not finite(corners):
            reason = "is not finite"
        elif corners[2] <= corners[0] or corners[3] <= corners[1]:
            reason = "has no area"
        elif x1 <= x0 or y1 <= y0:
            reason = f"lies outside the image of {width}x{height}"
        if reason:
            self._report(image.source, f"{box.where} with xyxy {told} {reason}; it was left out")
            return None
        beyond = max(abs(c - k) for c, k in zip(corners, (x0, y0, x1, y1), strict=True))
        if beyond > _OUTSIDE_PX:
            text = f"{box.where} with xyxy {told} reaches beyond the image of {width}x{height}"
            self._report(image.source, f"{text}; it was clipped")
        return x0, y0, x1, y1

    def _report(self, file: str, text: str) -> None:
        self.problems.append(Problem(file=file, text=text))


def image_number(file: str) -> int:
    """An id for an image file (relative to the root) of data that has none: of its name alone, so
    that results by id (teachers' boxes) stay right when images are added or divided differently.
    48 bits of a hash: that any two of 100 000 files share an id has a chance of 1 in 56 000.
    """
    return int.from_bytes(hashlib.sha256(file.encode(errors="surrogateescape")).digest()[:6])


def _entry(box: Box, corners: tuple[float, float, float, float]) -> Content:
    """An annotation without its ids; ``area`` is that of the mask where the data tells it."""
    x0, y0, x1, y1 = corners
    bbox = [round(v, 4) for v in (x0, y0, x1 - x0, y1 - y0)]
    area = box.extra.get("area")
    if area is None or not finite([area]) or area <= 0:
        area = round((x1 - x0) * (y1 - y0), 4)
    return {
        **box.extra,
        "category_id": box.category,
        "bbox": bbox,
        "area": area,
        "iscrowd": int(box.ignored),
    }
