"""Painting one scene of the built-in data: textured shapes that occlude each other on clutter.

Pure numpy and Pillow; a scene depends on its generator alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from codetr.data.shapes import SHAPES, Points, Shape

Pixels = NDArray[np.float32]
"""(H, W, 3) RGB from 0 to 255, or (H, W) from 0 to 1."""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""

_SUPERSAMPLING = 4
_MIN_VISIBLE = 0.25
_MIN_CONTRAST = 70.0  # Euclidean RGB distance of a shape's mean colour to what lies under it


@dataclass(frozen=True, kw_only=True)
class SceneStyle:
    """What scenes look like; lengths as a share of the image's short side.

    ``objects`` least and most shapes tried; ``sizes`` smallest and largest diameter, log-uniform.
    """

    objects: tuple[int, int] = (1, 8)
    sizes: tuple[float, float] = (0.11, 0.95)


@dataclass(frozen=True)
class SceneObject:
    """A painted shape: class index, xyxy box and area in pixels.

    Both are of all that lies within the image, as if nothing occluded the shape.
    """

    label: int
    box: Box
    area: float


@dataclass
class _Painted:
    """A shape on the canvas: its full area, and the coverage that is still visible."""

    object: SceneObject
    full_area: float
    visible: Pixels


def render_scene(
    rng: np.random.Generator, height: int, width: int, style: SceneStyle
) -> tuple[NDArray[np.uint8], list[SceneObject]]:
    """An image (height, width, 3) uint8 and its objects, each at least 25 % visible."""
    canvas = _background(rng, height, width)
    painted: list[_Painted] = []
    for _ in range(rng.integers(style.objects[0], style.objects[1] + 1)):
        label = int(rng.integers(len(SHAPES)))
        shape = _place(rng, list(SHAPES.values())[label], height, width, style)
        mask, box = _coverage(shape, height, width)
        full_area = _polygon_area(shape)
        visible = [p.visible * (1 - mask) for p in painted]
        hides_another = any(
            left.sum() < _MIN_VISIBLE * p.full_area
            for left, p in zip(visible, painted, strict=True)
        )
        if hides_another or mask.sum() < _MIN_VISIBLE * full_area:
            continue
        _paint(rng, canvas, mask)
        for p, left in zip(painted, visible, strict=True):
            p.visible = left
        painted.append(_Painted(SceneObject(label, box, float(mask.sum())), full_area, mask))
    canvas += rng.uniform(2, 8) * rng.standard_normal(canvas.shape, dtype=np.float32)
    pixels = canvas.round().clip(0, 255).astype(np.uint8)
    return pixels, [p.object for p in painted]


def _place(
    rng: np.random.Generator, shape: Shape, height: int, width: int, style: SceneStyle
) -> Shape:
    """The shape in pixels: stretched a little, turned, scaled; its centre within the image."""
    smallest, largest = np.log(style.sizes)
    radius = np.exp(rng.uniform(smallest, largest)) * min(height, width) / 2
    stretch = np.exp(rng.uniform(-0.2, 0.2))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = rng.uniform(0.03, 0.97, 2) * (width, height)
    return shape.placed(radius * turn @ np.diag([stretch, 1 / stretch]), centre)


def _coverage(shape: Shape, height: int, width: int) -> tuple[Pixels, Box]:
    """(height, width) share of each pixel that the shape covers, and the box around it all.

    By supersampling the window that the shape lies in; the box is empty where that is outside.
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
    """Area by the shoelace formula, within the image or not."""

    def area(points: Points) -> float:
        x, y = points.T
        return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)

    return area(shape.outline) - (0.0 if shape.hole is None else area(shape.hole))


def _paint(rng: np.random.Generator, canvas: Pixels, mask: Pixels) -> None:
    """Blend a textured shape into the canvas, in place."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = mask[window][..., None]
    below = (canvas[window] * alpha).sum(axis=(0, 1)) / alpha.sum()
    colour = rng.uniform(0, 255, 3)
    while np.linalg.norm(colour - below) < _MIN_CONTRAST:
        colour = rng.uniform(0, 255, 3)
    second = (colour + rng.normal(0, 45, 3)).clip(0, 255)
    blend = _texture(rng, *alpha.shape[:2])[..., None]
    texture = _float32(colour) + _float32(second - colour) * blend
    canvas[window] += alpha * (texture - canvas[window])


def _float32(colour: NDArray[np.floating]) -> Pixels:
    return colour.astype(np.float32)


def _texture(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """(height, width) from 0 to 1: stripes, dots, noise or a gradient in a random direction."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 12)
    y, x = np.mgrid[:height, :width]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    kind = rng.integers(4)
    if kind == 0:
        pattern = (np.sin(2 * np.pi * along / period) > 0).astype(np.float32)
    elif kind == 1:
        waves = np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period)
        pattern = (np.abs(waves) > 0.5).astype(np.float32)
    elif kind == 2:
        pattern = _smooth_noise(rng, height, width, cell=3)
    else:
        pattern = (along - along.min()) / max(np.ptp(along), 1.0)
    return np.asarray(pattern, dtype=np.float32)


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Pixels:
    """(height, width) from 0 to 1, varying over about ``cell`` pixels."""
    coarse = rng.random((max(round(height / cell), 2), max(round(width / cell), 2)))
    noise = Image.fromarray(coarse.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return np.asarray(noise)


def _background(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """A gradient of two colours, cloudy noise, soft blobs and thin lines."""
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.add.outer(_float32(y / height * np.sin(angle)), _float32(x / width * np.cos(angle)))
    ramp = ((ramp - ramp.min()) / np.ptp(ramp))[..., None]
    first, second = rng.uniform(20, 235, (2, 3))
    canvas = _float32(first) + _float32(second - first) * ramp
    clouds = _smooth_noise(rng, height, width, cell=rng.uniform(6, 30)) - 0.5
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
