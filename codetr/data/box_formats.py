"""Formats of boxes, and signs that a file follows another convention than it should."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr.data.formats.content import shown
from codetr.errors import UserError

_FEWEST = 3  # boxes that could all be large, and lie so, by chance
_BEYOND_PX, _BEYOND_SHARE = 2.0, 0.01  # of a side: annotation tools round
_FAR_SHARE = 0.1  # of a side: corners of the right half are further, careless boxes are not
_OFTEN = 0.1  # of all boxes: of two corners far more add up to a place beyond the image
_SMALLEST_PX = 8  # sides of images in which boxes of a pixel would be nothing


AUTO, XYWH, XYXY, CXCYWH = "auto", "xywh", "xyxy", "cxcywh"
BOX_FORMATS = {
    XYWH: "corner and size [x, y, width, height]",
    XYXY: "two corners [x0, y0, x1, y1]",
    CXCYWH: "centre and size [x, y, width, height]",
}
"""What four numbers of a box may be."""


def require_box_format(form: str, known: Sequence[str] = (AUTO, *BOX_FORMATS)) -> None:
    """Raises UserError for a format of boxes that is not ``known``."""
    if form not in known:
        raise UserError(f"data.source.box_format={form}: choose {', '.join(known)}")


def to_xyxy(boxes: NDArray[np.float64], form: str) -> NDArray[np.float64]:
    """The corners of (N, 4) boxes."""
    if form == XYXY:
        return boxes
    start = boxes[:, :2] - (boxes[:, 2:] / 2 if form == CXCYWH else 0)
    return np.concatenate([start, start + boxes[:, 2:]], axis=1)


def other_formats(
    boxes: NDArray[np.float64], sizes_wh: NDArray[Any], form: str
) -> tuple[list[str], int]:
    """The formats that all (N, 4) boxes of a file fit, each in an image of (N, 2) width and height
    (0: not known), and how many of them do not fit ``form``; no formats where that may be
    carelessness: that some reach a little beyond their image, or a few far.
    """
    known = (sizes_wh >= _SMALLEST_PX).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    boxes, sizes = boxes[known], sizes_wh[known]
    slack = _BEYOND_PX + _BEYOND_SHARE * sizes
    over = _beyond(boxes, sizes, form)
    beyond = (over > slack).any(axis=1)
    if len(boxes) < _FEWEST or beyond.mean() < _OFTEN or not (over > _FAR_SHARE * sizes).any():
        return [], int(beyond.sum())
    others = [f for f in BOX_FORMATS if (_beyond(boxes, sizes, f) <= slack).all()]
    return others, int(beyond.sum())


def _beyond(boxes: NDArray[np.float64], sizes_wh: NDArray[Any], form: str) -> NDArray[np.float64]:
    """(N, 2) by how much boxes reach beyond their image; without end where they have no area."""
    with np.errstate(over="ignore", invalid="ignore"):
        corners = to_xyxy(boxes, form)
        start, end = corners[:, :2], corners[:, 2:]
        return np.where(start < end, np.maximum(end - sizes_wh, -start), np.inf)


def other_convention(
    boxes: NDArray[np.float64], sizes_wh: NDArray[Any], form: str = XYWH
) -> str | None:
    """What is wrong with all boxes of a file, where they can only be shares of the image or of
    another format than ``form``; None otherwise, as in ``other_formats``.
    """
    known = (sizes_wh >= _SMALLEST_PX).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    if known.any() and ((boxes[known] >= 0) & (boxes[known] <= 1)).all():
        return (
            f"all {known.sum()} boxes lie within one pixel of the corner of their image, as shares "
            "of its width and height do: multiply them by these, COCO's are pixels"
        )
    others, beyond = other_formats(boxes, sizes_wh, form)
    if not others:
        return None
    meant = " or ".join(BOX_FORMATS[other] for other in others)
    settings = " or ".join(f"data.source.box_format={other}" for other in others)
    return (
        f"{beyond} of {known.sum()} boxes reach beyond their image, and all fit if they are read "
        f"as {meant}: write {BOX_FORMATS[form]}, or set {settings} with data=custom, or "
        f"data.source.box_format={form} if they are right"
    )


def similar_names(names: Sequence[str]) -> list[str]:
    """A line for classes whose names differ in nothing, or in upper and lower case alone."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[name.casefold()].append(name)
    return [
        f"{len(group)} classes are called {' and '.join(map(shown, group))}: if they are one, set "
        f"data.classes.merge={{{group[0]}: [{', '.join(dict.fromkeys(group))}]}}"
        for group in groups.values()
        if len(group) > 1
    ]
