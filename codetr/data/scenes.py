"""Rendering a scene of the built-in data: textured shapes that occlude each other on clutter.

Uses numpy and Pillow only; a scene depends only on its random generator.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from codetr.data.outlines import enclosed_area
from codetr.data.shapes import SHAPES, Shape
from codetr.data.textures import smooth_noise, texture

Pixels = NDArray[np.float32]
"""(H, W, 3) RGB from 0 to 255, or (H, W) from 0 to 1."""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""

_SUPERSAMPLING = 4
_MIN_VISIBLE = 0.25
_SHOWN = 0.5  # least visible share of a pixel in a mask
_MIN_CONTRAST = 70.0  # Euclidean RGB distance between a shape's first colour and its background
_MIN_TEXTURE = 90.0  # between its second colour and the first
_HUE_SPREAD = 0.04  # standard deviation of a class's hue, as a share of the colour circle
_TRIES = 20


@dataclass(frozen=True, kw_only=True)
class SceneStyle:
    """Parameters of scenes; lengths are fractions of the image's short side.

    ``objects``: minimum and maximum number of shapes tried; ``sizes``: smallest and largest
    diameter, log-uniform.
    """

    objects: tuple[int, int] = (1, 4)
    sizes: tuple[float, float] = (0.3, 0.95)


@dataclass(frozen=True)
class SceneObject:
    """A painted shape: class index, xyxy box and area in pixels, and ``mask`` (H, W) uint8.

    Box and area are those of the part within the image, ignoring occlusion; the mask is 1 where the
    shape is visible in at least half of a pixel.
    """

    label: int
    box: Box
    area: float
    mask: NDArray[np.uint8]


@dataclass
class _Painted:
    """A shape on the canvas: the values of ``SceneObject``, its full area including the part beyond
    the image, and its coverage that is still visible.
    """

    label: int
    box: Box
    area: float
    full_area: float
    visible: Pixels

    def finished(self) -> SceneObject:
        """The object in its final state, after all shapes have been painted."""
        mask = (self.visible >= _SHOWN).astype(np.uint8)
        return SceneObject(self.label, self.box, self.area, mask)


def render_scene(
    rng: np.random.Generator, height: int, width: int, style: SceneStyle
) -> tuple[NDArray[np.uint8], list[SceneObject]]:
    """An image (height, width, 3) uint8 and its objects, each at least 25 % visible."""
    canvas = _background(rng, height, width)
    painted: list[_Painted] = []
    for _ in range(rng.integers(style.objects[0], style.objects[1] + 1)):
        label = int(rng.integers(len(SHAPES)))
        name, outline = list(SHAPES.items())[label]
        shape = _place(rng, outline, height, width, style)
        mask, box = _coverage(shape, height, width)
        full_area = _polygon_area(shape)
        visible = [p.visible * (1 - mask) for p in painted]
        hides_another = any(
            left.sum() < _MIN_VISIBLE * p.full_area
            for left, p in zip(visible, painted, strict=True)
        )
        if hides_another or mask.sum() < _MIN_VISIBLE * full_area:
            continue
        _paint(rng, canvas, mask, name)
        for p, left in zip(painted, visible, strict=True):
            p.visible = left
        painted.append(_Painted(label, box, float(mask.sum()), full_area, mask))
    canvas += rng.uniform(2, 8) * rng.standard_normal(canvas.shape, dtype=np.float32)
    pixels = canvas.round().clip(0, 255).astype(np.uint8)
    return pixels, [p.finished() for p in painted]


def _place(
    rng: np.random.Generator, shape: Shape, height: int, width: int, style: SceneStyle
) -> Shape:
    """The shape in pixels: slightly stretched, rotated and scaled, with its centre in the image."""
    smallest, largest = np.log(style.sizes)
    radius = np.exp(rng.uniform(smallest, largest)) * min(height, width) / 2
    stretch = np.exp(rng.uniform(-0.2, 0.2))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = rng.uniform(0.03, 0.97, 2) * (width, height)
    return shape.placed(radius * turn @ np.diag([stretch, 1 / stretch]), centre)


def _coverage(shape: Shape, height: int, width: int) -> tuple[Pixels, Box]:
    """(height, width) share of each pixel that the shape covers, and its bounding box.

    Computed by supersampling the window around the shape; the box is empty if that is outside.
    """
    coverage = np.zeros((height, width), dtype=np.float32)
    x0, y0 = np.maximum(np.floor(shape.outline.min(axis=0)), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(shape.outline.max(axis=0)), (width, height)).astype(int)
    s = _SUPERSAMPLING
    mask = Image.new("L", (max(x1 - x0, 0) * s, max(y1 - y0, 0) * s))
    draw = ImageDraw.Draw(mask)
    for polygon, fill in ((shape.outline, 255), (shape.hole, 0)):
        if polygon is not None:
            # Pillow fills pixels whose centres have integer coordinates.
            draw.polygon([tuple(p) for p in (polygon - (x0, y0)) * s - 0.5], fill=fill)
    bounds = mask.getbbox()
    if bounds is None:
        return coverage, (0.0, 0.0, 0.0, 0.0)
    coverage[y0:y1, x0:x1] = np.asarray(mask.reduce(s), dtype=np.float32) / 255
    left, top, right, bottom = (float(v) / s for v in bounds)
    return coverage, (x0 + left, y0 + top, x0 + right, y0 + bottom)


def _polygon_area(shape: Shape) -> float:
    """Area without the hole, including the part beyond the image."""
    return enclosed_area(shape.outline) - (0.0 if shape.hole is None else enclosed_area(shape.hole))


def _paint(rng: np.random.Generator, canvas: Pixels, mask: Pixels, name: str) -> None:
    """Paint a shape with the texture of class ``name`` on the canvas, in place."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = mask[window][..., None]
    below = (canvas[window] * alpha).sum(axis=(0, 1)) / alpha.sum()
    colour = _far_from(below, _MIN_CONTRAST, lambda: _typical_colour(rng, name))
    second = _far_from(colour, _MIN_TEXTURE, lambda: _greyish(rng, 0, 255))
    pattern = texture(rng, name, *alpha.shape[:2])[..., None]
    inside = _float32(colour) + _float32(second - colour) * pattern
    canvas[window] += alpha * (inside - canvas[window])


def _typical_colour(rng: np.random.Generator, name: str) -> NDArray[np.float64]:
    """A random RGB colour for class ``name``: each class has its own range of hues; these
    overlap.
    """
    hue = list(SHAPES).index(name) / len(SHAPES) + rng.normal(0, _HUE_SPREAD)
    rgb = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.4, 1), rng.uniform(0.4, 1))
    return np.array(rgb) * 255


def _greyish(rng: np.random.Generator, low: float, high: float) -> NDArray[np.float64]:
    """A random RGB colour of low saturation."""
    return rng.uniform(low, high) * 0.75 + rng.uniform(low, high, 3) * 0.25


def _far_from(
    other: NDArray[np.floating], distance: float, draw: Callable[[], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """The first of a few draws that is at least ``distance`` away from ``other``, or the last."""
    for _ in range(_TRIES):
        colour = draw()
        if np.linalg.norm(colour - other) >= distance:
            break
    return colour


def _float32(colour: NDArray[np.floating]) -> Pixels:
    return colour.astype(np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """A gradient of two colours, cloudy noise, soft blobs and thin lines."""
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.add.outer(_float32(y / height * np.sin(angle)), _float32(x / width * np.cos(angle)))
    ramp = ((ramp - ramp.min()) / np.ptp(ramp))[..., None]
    first, second = _greyish(rng, 20, 235), _greyish(rng, 20, 235)
    canvas = _float32(first) + _float32(second - first) * ramp
    clouds = smooth_noise(rng, height, width, cell=rng.uniform(6, 30)) - 0.5
    canvas += clouds[..., None] * _float32(rng.uniform(-90, 90, 3))
    for _ in range(rng.integers(0, 5)):
        spread = rng.uniform(0.03, 0.15, 2) * min(height, width)
        centre = rng.uniform(0, 1, 2) * (width, height)
        columns = np.exp(-(((x - centre[0]) / spread[0]) ** 2))
        rows = np.exp(-(((y - centre[1]) / spread[1]) ** 2))
        blob = np.multiply.outer(_float32(rows), _float32(columns))
        canvas += blob[..., None] * _float32(rng.uniform(-110, 110, 3))
    return _with_lines(rng, canvas.clip(0, 255))


def _with_lines(rng: np.random.Generator, canvas: NDArray[np.floating]) -> Pixels:
    height, width = canvas.shape[:2]
    image = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 7)):
        ends = rng.uniform(-0.1, 1.1, (2, 2)) * (width, height)
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        draw.line([tuple(p) for p in ends], fill=colour, width=int(rng.integers(1, 4)))
    return np.asarray(image, dtype=np.float32).copy()
