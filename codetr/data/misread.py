"""Boxes and names that another convention than COCO's has written, as far as they show it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from codetr.data.formats.found import shown

_FEWEST = 3  # boxes that could all be large, and lie so, by chance
_BEYOND_PX, _BEYOND_SHARE = 2.0, 0.01  # of a side: annotation tools round
_SMALLEST_PX = 8  # sides of images in which boxes of a pixel would be nothing


def other_convention(xywh_px: NDArray[np.float64], sizes_wh: NDArray[np.int64]) -> str | None:
    """What is wrong with all (N, 4) boxes of a file, each in an image of (N, 2) width and height
    (0: not known), where they can only be shares of the image, or two corners; None otherwise.
    """
    known = (sizes_wh >= _SMALLEST_PX).all(axis=1)
    boxes, sizes = xywh_px[known], np.concatenate([sizes_wh, sizes_wh], axis=1)[known]
    if not len(boxes):
        return None
    if ((boxes >= 0) & (boxes <= 1)).all():
        return (
            f"all {len(boxes)} boxes lie within one pixel of the corner of their image, as shares "
            "of its width and height do: multiply them by these, COCO's are pixels"
        )
    slack = _BEYOND_PX + _BEYOND_SHARE * sizes[:, :2]
    beyond = (boxes[:, :2] + boxes[:, 2:] > sizes[:, :2] + slack).any(axis=1)
    corners = (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes[:, :2] + slack)
    if len(boxes) >= _FEWEST and beyond.any() and corners.all():
        return (
            f"{int(beyond.sum())} of {len(boxes)} boxes reach beyond their image, and all fit if "
            "they are read as two corners [x0, y0, x1, y1]: write [x, y, width, height]"
        )
    return None


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
