"""The training pipelines as they are usually written: Pillow, numpy, and one step after another.

The baseline of ``tools.bench.data``: the same random decisions as ``codetr.data.augment`` and
``codetr.data.copy_paste``, from the same configuration, on one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_GREY = 114


@dataclass(frozen=True)
class Item:
    """``image``; ``boxes`` (N, 4) xyxy pixels; ``masks`` one of the image's size for each box, or
    none at all.
    """

    image: Image.Image
    boxes: NDArray[np.float64]
    masks: Sequence[Image.Image] = ()

    def moved(
        self, change: Callable[[Image.Image, bool], Image.Image], boxes: NDArray[np.float64]
    ) -> Item:
        """``change(picture, is a mask)`` of every picture, and new boxes; empty ones go."""
        kept = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
        masks = [
            change(m, True) for m, keep in zip(self.masks, kept.tolist(), strict=False) if keep
        ]
        return Item(change(self.image, False), boxes[kept], masks)


def load(path: Path, boxes: NDArray[np.float64], polygons: Sequence[Any]) -> Item:
    """Open a file; with ``polygons`` (coordinates of each object) draw a mask of each."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    masks = []
    for outline in polygons:
        runs = rle.merge(rle.frPyObjects(outline, image.height, image.width))
        masks.append(Image.fromarray(rle.decode(runs)))
    return Item(image, boxes, masks)


def fit(item: Item, short: float, long: float, antialias: bool) -> Item:
    """Resize to fit within ``short`` and ``long`` sides; without ``antialias`` between the four
    nearest pixels, as OpenCV shrinks.
    """
    width, height = item.image.size
    scale = min(long / max(width, height), short / min(width, height))
    size = max(int(width * scale + 0.5), 1), max(int(height * scale + 0.5), 1)
    factor = np.array([size[0] / width, size[1] / height] * 2)

    def change(picture: Image.Image, mask: bool) -> Image.Image:
        kind = Image.Resampling.NEAREST if mask else Image.Resampling.BILINEAR
        if mask or antialias:
            return picture.resize(size, kind)
        matrix = (width / size[0], 0, 0, 0, height / size[1], 0)
        return picture.transform(size, Image.Transform.AFFINE, matrix, kind)

    return item.moved(change, item.boxes * factor)


def crop(item: Item, low: int, high: int, rng: np.random.Generator) -> Item:
    """Cut out a window with sides in [low, high], at most the image."""
    width, height = item.image.size
    w, h = (int(rng.integers(min(s, low), min(s, high) + 1)) for s in (width, height))
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    boxes = (item.boxes - [x, y, x, y]).clip(0, [w, h, w, h])
    return item.moved(lambda picture, _: picture.crop((x, y, x + w, y + h)), boxes)


def flip(item: Item, probability: float, rng: np.random.Generator) -> Item:
    """Mirror left and right, with a probability."""
    if rng.random() >= probability:
        return item
    width = item.image.width
    boxes = np.stack([width - item.boxes[:, 2], item.boxes[:, 1], width - item.boxes[:, 0],
                      item.boxes[:, 3]], axis=1)  # fmt: skip
    return item.moved(lambda p, _: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT), boxes)


def pad(item: Item, canvas: int) -> Item:
    """Pad to a square canvas at the bottom and right."""

    def change(picture: Image.Image, mask: bool) -> Image.Image:
        padded = Image.new(picture.mode, (canvas, canvas), 0 if mask else (_GREY,) * 3)
        padded.paste(picture, (0, 0))
        return padded

    return item.moved(change, item.boxes)


def large_scale_jitter(item: Item, options: Mapping[str, Any], rng: np.random.Generator) -> Item:
    """As ``LsjAugmentation``, with its options."""
    canvas = options["canvas"]
    side = max(int(canvas * rng.uniform(*options["ratio"])), 1)
    cropped = crop(fit(item, side, side, antialias=False), canvas, canvas, rng)
    return pad(flip(cropped, options["flip"], rng), canvas)


def detr(item: Item, options: Mapping[str, Any], rng: np.random.Generator) -> Item:
    """As ``DetrAugmentation``, with its options."""
    item, antialias = flip(item, options["flip"], rng), options["antialias"]
    if rng.random() < options["crop_probability"]:
        item = fit(item, rng.choice(options["crop_shorts"]), options["crop_long"], antialias)
        low, high = options["crop_range"]
        item = crop(item, low, high, rng)
    return fit(item, rng.choice(options["shorts"]), options["long"], antialias)


def copy_paste(
    below: Item, above: Item, options: Mapping[str, Any], rng: np.random.Generator
) -> Item:
    """As ``CopyPaste``, with its options."""
    count = int(rng.integers(min(len(above.masks), options["max_pasted"] - 1) + 1))
    if not count:
        return Item(below.image, below.boxes)
    chosen = rng.permutation(len(above.masks))[:count]
    pasted = np.stack([np.array(above.masks[i]) for i in chosen])
    covered = pasted.max(axis=0)
    pixels = np.where(covered[..., None] > 0, np.array(above.image), np.array(below.image))
    boxes = [_bounds(mask) for mask in pasted]
    for old, mask in zip(below.boxes, below.masks, strict=True):
        visible = np.array(mask) * (1 - covered)
        area = visible.sum()
        if area == 0:
            continue
        box = _bounds(visible)
        if (abs(box - old) <= options["max_shift_px"]).all() or area > options["min_visible_px"]:
            boxes.append(box)
    return Item(Image.fromarray(pixels), np.array(boxes).reshape(-1, 4))


def _bounds(mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    ys, xs = np.where(mask)
    if not len(ys):
        return np.zeros(4)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=np.float64)


def to_tensor(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(3, H, W) float32, normalised by ``mean`` and ``std`` (RGB, 0 to 255)."""
    pixels = np.array(image).astype(np.float32)
    normal = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))
