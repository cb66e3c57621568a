"""Boxes and areas of COCO's ``segmentation``, for objects without a box."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr.data.json_columns import as_integer, as_number

_MIN_POINTS = 3  # of a polygon
_LONGEST_SIDE = 2**24


def box_of(segmentation: Any) -> list[float] | None:
    """The bounding box [x, y, width, height] of polygons or run lengths, as COCO's own tools
    compute it; None if it is neither, or empty.
    """
    polygons = _polygons(segmentation)
    if polygons:
        corners = np.concatenate(polygons)
        low, high = corners.min(axis=0), corners.max(axis=0)
        return [*low.tolist(), *(high - low).tolist()]
    runs = _runs(segmentation)
    if runs is None:
        return None
    (starts, ends), height = runs
    within_a_column = starts // height == (ends - 1) // height
    top = np.where(within_a_column, starts % height, 0).min()
    bottom = np.where(within_a_column, (ends - 1) % height + 1, height).max()
    left, right = starts.min() // height, (ends.max() - 1) // height + 1
    return [float(left), float(top), float(right - left), float(bottom - top)]


def area_of(segmentation: Any) -> float | None:
    """The area in pixels, where overlaps of polygons count twice; None if there is no box."""
    polygons = _polygons(segmentation)
    if polygons:
        return float(sum(map(enclosed_area, polygons)))
    runs = _runs(segmentation)
    return None if runs is None else float((runs[0][1] - runs[0][0]).sum())


def polygons_of(segmentation: Any) -> list[NDArray[np.float64]]:
    """The vertices (P, 2) of each polygon in pixels, without parts of one or two points, which have
    no area. Raises ValueError for anything else than polygons.
    """
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"it is {segmentation!r}" if segmentation else "no polygon")
    if not any(isinstance(part, list) for part in segmentation):
        segmentation = [segmentation]  # a single polygon that is not in a list
    polygons = [_vertices(part) for part in segmentation]
    if not any(len(polygon) >= _MIN_POINTS for polygon in polygons):
        raise ValueError("no polygon has three or more points")
    return [polygon for polygon in polygons if len(polygon) >= _MIN_POINTS]


def _vertices(part: Any) -> NDArray[np.float64]:
    if not isinstance(part, list) or len(part) % 2:
        raise ValueError("a polygon is not a list of x, y")
    if not {int, float}.issuperset(map(type, part)):
        part = [as_number(value) for value in part]
    try:
        vertices = np.array(part, np.float64).reshape(-1, 2)  # None becomes NaN
    except OverflowError:  # an integer beyond the range of floats
        vertices = np.full((1, 2), np.nan)
    if not np.isfinite(vertices).all():
        raise ValueError("a coordinate of a polygon is not a finite number")
    return vertices


def enclosed_area(polygon: NDArray[np.float64]) -> float:
    """The area of a polygon by the shoelace formula."""
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _polygons(segmentation: Any) -> list[NDArray[np.float64]]:
    try:
        return polygons_of(segmentation)
    except ValueError:
        return []


def _runs(
    segmentation: Any,
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], int] | None:
    """Starts and ends of the object's runs of pixels in column-major order, and the height of the
    image; None for anything but run lengths of a whole image with an object.
    """
    if not isinstance(segmentation, Mapping):
        return None
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2:
        return None
    height, width = (as_integer(side) or 0 for side in size)
    if not (0 < height < _LONGEST_SIDE and 0 < width < _LONGEST_SIDE):
        return None
    lengths = _decoded(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not {int}.issuperset(map(type, lengths)):
        return None
    if any(not 0 <= length <= height * width for length in lengths):
        return None
    if sum(lengths) != height * width:
        return None
    bounds = np.cumsum([0, *lengths])
    of_object = list(range(1, len(lengths), 2))
    starts, ends = bounds[of_object], bounds[[i + 1 for i in of_object]]
    there = ends > starts
    return ((starts[there], ends[there]), height) if there.any() else None


def _decoded(text: str) -> list[int] | None:
    """Run lengths from COCO's compressed text. Each character encodes 6 bits (offset ``0``): 5 bits
    of the number and a continuation bit. From the fourth number on, they are differences from the
    last but one.
    """
    lengths: list[int] = []
    number = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        number |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                number -= 1 << shift
            lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
            number = shift = 0
    return lengths if shift == 0 else None
