"""Texture patterns of the built-in classes: one per class, in any colours and direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pattern = NDArray[np.float32]
"""(H, W) from 0 to 1: the share of the second colour."""


@dataclass(frozen=True)
class Grid:
    """Rotated coordinates of a window's pixels, in periods of the pattern; ``radius`` is the
    distance from its centre.
    """

    along: NDArray[np.float64]
    across: NDArray[np.float64]
    radius: NDArray[np.float64]


def _grid(rng: np.random.Generator, height: int, width: int) -> Grid:
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 9)
    y, x = np.mgrid[:height, :width] - np.array([height, width])[:, None, None] / 2
    return Grid(
        along=(x * np.cos(angle) + y * np.sin(angle)) / period,
        across=(y * np.cos(angle) - x * np.sin(angle)) / period,
        radius=np.hypot(x, y) / period,
    )


def _wave(phase: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.sin(2 * np.pi * phase) > 0


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Pattern:
    """Smooth noise (height, width) from 0 to 1 with a scale of about ``cell`` pixels."""
    coarse = rng.random((max(round(height / cell), 2), max(round(width / cell), 2)))
    noise = Image.fromarray(coarse.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return np.asarray(noise)


PATTERNS: dict[str, Callable[[Grid], NDArray]] = {
    "disk": lambda g: np.zeros_like(g.radius),
    "square": lambda g: _wave(g.along) ^ _wave(g.across),
    "triangle": lambda g: _wave(g.along),
    "star": lambda g: _wave(g.radius),
    "ring": lambda g: np.clip(g.along / (np.ptp(g.along) + 1e-6) + 0.5, 0, 1),
    "cross": lambda g: np.sin(2 * np.pi * g.along) * np.sin(2 * np.pi * g.across) > 0.4,
}
"""Plain, checks, stripes, circles, gradient and dots, by class name."""


def texture(rng: np.random.Generator, name: str, height: int, width: int) -> Pattern:
    """The pattern of class ``name`` in a window of (height, width) pixels."""
    return PATTERNS[name](_grid(rng, height, width)).astype(np.float32)
