"""The outlines of the built-in classes, as polygons within the unit disk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(P, 2) x, y; y points down as in images."""

_ARC = 48  # points on a full circle: more than the pixels of the largest shape can show


@dataclass(frozen=True)
class Shape:
    """A polygon, optionally with a hole."""

    outline: Points
    hole: Points | None = None

    def placed(self, matrix: NDArray[np.float64], centre: Points) -> Shape:
        """The shape transformed by ``matrix`` (2, 2) and translated to ``centre`` (2,)."""
        hole = None if self.hole is None else self.hole @ matrix.T + centre
        return Shape(self.outline @ matrix.T + centre, hole)


def _arc(start: float, end: float, radius: float = 1.0, points: int = _ARC) -> Points:
    """Points on a circle around the origin, from angle ``start`` to ``end`` (radians)."""
    angles = np.linspace(start, end, points, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _regular(corners: int, turn: float = 0.0) -> Points:
    return _arc(turn, turn + 2 * np.pi, points=corners)


def _star(points: int = 5, waist: float = 0.42) -> Points:
    radii = np.tile([1.0, waist], points)
    return _regular(2 * points) * radii[:, None]


def _cross(arm: float = 0.3) -> Points:
    quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, n).T for n in range(4)])


SHAPES: dict[str, Shape] = {
    "disk": Shape(_regular(_ARC)),
    "square": Shape(_regular(4, np.pi / 4)),
    "triangle": Shape(_regular(3)),
    "star": Shape(_star()),
    "ring": Shape(_regular(_ARC), _arc(0, 2 * np.pi, 0.55)),
    "cross": Shape(_cross()),
}
"""Outline by class name; the order gives the category ids 1, 2, ..."""
