"""Box formats, and the detection of files with another format than they should have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr.data.formats.content import short_repr
from codetr.errors import UserError

_FEWEST = 3  # with fewer boxes, all may look wrong by chance
_FAR_SHARE = 0.1  # of a side: sloppy boxes reach less far beyond the image, misread ones further
_OFTEN = 0.1  # of all boxes: with misread corners, far more reach beyond the image
_SMALLEST_PX = 8  # images with a shorter side are ignored

OUTSIDE_PX = 1.0
"""Tolerance beyond the border of an image: annotation tools round."""

AUTO, XYWH, XYXY, CXCYWH = "auto", "xywh", "xyxy", "cxcywh"
BOX_FORMATS = {
    XYWH: "corner and size [x, y, width, height]",
    XYXY: "two corners [x0, y0, x1, y1]",
    CXCYWH: "centre and size [x, y, width, height]",
}
"""Descriptions of the box formats."""


def require_box_format(form: str, known: Sequence[str] = (AUTO, *BOX_FORMATS)) -> None:
    """Raise UserError for a box format that is not in ``known``."""
    if form not in known:
        raise UserError(f"data.source.box_format={form}: choose {', '.join(known)}")


def to_xyxy(boxes: NDArray[np.float64], form: str) -> NDArray[np.float64]:
    """Convert boxes (N, 4) from the format ``form`` to corners."""
    if form == XYXY:
        return boxes
    start = boxes[:, :2] - (boxes[:, 2:] / 2 if form == CXCYWH else 0)
    return np.concatenate([start, start + boxes[:, 2:]], axis=1)


def slack_px(sizes: NDArray[Any]) -> NDArray[np.float64]:
    """How far boxes of the right format may reach beyond images with ``sizes`` in pixels."""
    return 2.0 + 0.01 * sizes


def fitting_formats(
    boxes: NDArray[np.float64], sizes_wh: NDArray[Any], form: str
) -> tuple[list[str], int]:
    """The formats in which all boxes (N, 4) of a file are within their images, given by width and
    height (N, 2) (0: unknown), and the number of boxes that are not with ``form``. No formats are
    returned where sloppy annotation explains this: some boxes a little beyond their image, or a few
    far beyond.
    """
    known = (sizes_wh >= _SMALLEST_PX).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    boxes, sizes = boxes[known], sizes_wh[known]
    slack = slack_px(sizes)
    over = _beyond(boxes, sizes, form)
    beyond = (over > slack).any(axis=1)
    if len(boxes) < _FEWEST or beyond.mean() < _OFTEN or not (over > _FAR_SHARE * sizes).any():
        return [], int(beyond.sum())
    others = [f for f in BOX_FORMATS if (_beyond(boxes, sizes, f) <= slack).all()]
    return others, int(beyond.sum())


def _beyond(boxes: NDArray[np.float64], sizes_wh: NDArray[Any], form: str) -> NDArray[np.float64]:
    """(N, 2) by how much boxes reach beyond their image; infinite for boxes without area."""
    with np.errstate(over="ignore", invalid="ignore"):
        corners = to_xyxy(boxes, form)
        start, end = corners[:, :2], corners[:, 2:]
        return np.where(start < end, np.maximum(end - sizes_wh, -start), np.inf)


def convention_error(
    boxes: NDArray[np.float64], sizes_wh: NDArray[Any], form: str = XYWH
) -> str | None:
    """An error message if the boxes of a file must be relative to the image or in another format
    than ``form``, by the criteria of ``fitting_formats``; None otherwise.
    """
    known = (sizes_wh >= _SMALLEST_PX).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    if known.any() and ((boxes[known] >= 0) & (boxes[known] <= 1)).all():
        return (
            f"all {known.sum()} boxes lie within the first pixel of their image, so they seem "
            "to be relative to its width and height: multiply them by these, COCO's are in pixels"
        )
    others, beyond = fitting_formats(boxes, sizes_wh, form)
    if not others:
        return None
    fitting = " or ".join(BOX_FORMATS[other] for other in others)
    settings = " or ".join(f"data.source.box_format={other}" for other in others)
    return (
        f"{beyond} of {known.sum()} boxes reach beyond their image, and all fit if they are read "
        f"as {fitting}: write {BOX_FORMATS[form]}, or set {settings} with data=custom, or "
        f"data.source.box_format={form} if they are right"
    )


def similar_names(names: Sequence[str]) -> list[str]:
    """A line for each group of classes whose names are equal except for case."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[name.casefold()].append(name)
    return [
        f"{len(group)} classes are called {' and '.join(map(short_repr, group))}: if they are "
        f"one, set data.classes.merge={{{group[0]}: [{', '.join(dict.fromkeys(group))}]}}"
        for group in groups.values()
        if len(group) > 1
    ]
