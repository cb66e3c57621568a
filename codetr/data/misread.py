"""Boxes and names that another convention than COCO's has written, as far as they show it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from codetr.data.formats.found import shown

_FEWEST = 3  # boxes that could all be large, and lie so, by chance
_BEYOND_PX, _BEYOND_SHARE = 2.0, 0.01  # of a side: annotation tools round
_FAR_SHARE = 0.1  # of a side: corners of the right half are further, careless boxes are not
_OFTEN = 0.1  # of all boxes: of two corners far more add up to a place beyond the image
_SMALLEST_PX = 8  # sides of images in which boxes of a pixel would be nothing


def other_convention(xywh_px: NDArray[np.float64], sizes_wh: NDArray[np.int64]) -> str | None:
    """What is wrong with all (N, 4) boxes of a file, each in an image of (N, 2) width and height
    (0: not known), where they can only be shares of the image, or two corners; None otherwise.

    Large objects fit their image as corners, too: that some boxes reach a little beyond it, or a
    few far, is taken for carelessness.
    """
    known = (sizes_wh >= _SMALLEST_PX).all(axis=1) & (xywh_px[:, 2:] > 0).all(axis=1)
    boxes, sizes = xywh_px[known], sizes_wh[known]
    if not len(boxes):
        return None
    if ((boxes >= 0) & (boxes <= 1)).all():
        return (
            f"all {len(boxes)} boxes lie within one pixel of the corner of their image, as shares "
            "of its width and height do: multiply them by these, COCO's are pixels"
        )
    slack = _BEYOND_PX + _BEYOND_SHARE * sizes
    over = boxes[:, :2] + boxes[:, 2:] - sizes
    beyond = (over > slack).any(axis=1)
    far = (over > _FAR_SHARE * sizes).any()
    corners = (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes + slack)
    if len(boxes) >= _FEWEST and far and beyond.mean() >= _OFTEN and corners.all():
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
