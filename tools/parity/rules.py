"""Rules that generate weights and inputs of recorded runs, so that none are stored.

Rule version 1. All draws are by NumPy's PCG64. Weights depend only on a tensor's official name and
shape, images, boxes and maps on a seed. Each value is computed in float64 and rounded once to
float32. ``sizes`` are (height, width).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr.structures import Pyramid

Array = np.ndarray[Any, Any]

BUILT = ("relative_position_index", "freqs_cos", "freqs_sin", "attn_mask")
"""Suffixes of constants that a model computes itself."""

COUNTER = "num_batches_tracked"

TABLES = (
    ("level_embeds", 1.0),
    ("query_embed.weight", 1.0),
    ("query_embedding.weight", 1.0),
    ("label_embedding.weight", 1.0),
    ("head_pos_embed", 1.0),
    ("relative_position_bias_table", 0.5),
    ("backbone.pos_embed", 0.2),
)
"""(part of the name, amplitude) of embeddings: uniform around 0."""

BIASES = (
    ("sampling_offsets.bias", (0.0, 2.0)),
    ("cls_branches", (-4.0, 0.5)),
    ("atss_cls.bias", (-4.0, 0.5)),
    ("rpn_cls.bias", (-1.0, 0.5)),
    (".bn1.bias", (-0.5, 0.2)),
    (".bn2.bias", (-0.5, 0.2)),
    (".bn3.bias", (0.0, 0.2)),
    ("ffns.0.layers.0.0.bias", (-1.0, 0.3)),
    ("shared_fcs", (-0.5, 0.3)),
)
"""(part of the name, (mean, amplitude)) of vectors that are not norm weights."""

GAINS = (
    ("sampling_offsets.weight", 1.0),
    (".4.weight", 0.5),
    ("rpn_reg.weight", 0.2),
    ("fc_reg.weight", 0.5),
    ("atss_reg.weight", 0.5),
    ("attn.out_proj.weight", 0.5),
    ("output_proj.weight", 0.5),
    ("ffns.0.layers.1.weight", 2.0),
    (".conv1.weight", 1.2),
    (".conv2.weight", 1.2),
    (".conv3.weight", 1.2),
    ("shared_fcs", 1.5),
)
"""(part of the name, gain) of matrices: standard deviation gain / sqrt(fan in).

``.4.weight`` only matches the end of names of box branches.
"""

MASK_BRANCHES = ("mask_head", "mask_iou_head")
CENTRED = "stage_instance_logits"
MASK_GAINS = (
    ("conv_logits.weight", 6.0),
    (CENTRED, 6.0),
    ("upsample.weight", 3.0),
    ("merge_conv", 0.7),
    ("fc_mask_iou.weight", 2.0),
    ("", 1.5),
)
"""The same of the matrices of mask heads."""

STRIDES = (4, 8, 16, 32, 64, 128)
CHANNELS = 256
BLOCKS = ((4, 0.8), (1, 0.6))
"""(side, weight) of the noise in the maps of a single head."""
BOX_STREAM = 999
"""Stream number of the generator of boxes of a single head; that of a map is its level."""

Extra = Sequence[tuple[str, Any]]


def make_tensor(
    key: str, shape: Sequence[int], biases: Extra = (), gains: Extra = ()
) -> Array | None:
    """The value of the state-dict entry ``key``; None if the built value stays.

    ``biases`` and ``gains`` are entries that take precedence over the tables above.
    """
    if key.endswith(COUNTER):
        return np.zeros(tuple(shape), dtype=np.int64)
    if key.endswith(BUILT):
        return None
    offset, scale = _range(key, tuple(shape), (*biases, *BIASES), (*gains, *GAINS))
    values = offset + scale * centred(f"189/{key}", shape)
    if CENTRED in key and len(shape) > 1:
        values = values - values.mean(axis=1, keepdims=True)
    return np.asarray(values, dtype=np.float32)


def has_masks(keys: Iterable[str]) -> bool:
    """Whether a state dict with these ``keys`` has a mask head."""
    return any(branch in key for key in keys for branch in MASK_BRANCHES)


def generator(seed: int) -> np.random.Generator:
    """The generator of all draws of all rules."""
    return np.random.Generator(np.random.PCG64(seed))


def centred(text: str, shape: Sequence[int]) -> Array:
    """Uniform in [-1, 1), seeded by the CRC-32 of ``text``."""
    values: Array = 2.0 * generator(zlib.crc32(text.encode())).random(size=tuple(shape)) - 1.0
    return values


def _range(key: str, shape: tuple[int, ...], biases: Extra, gains: Extra) -> tuple[float, float]:
    """Middle and half width of the values of ``key``."""
    if key.endswith(("running_mean", "running_var")):
        return (0.0, 0.1) if key.endswith("mean") else (1.0, 0.5)
    if len(shape) > 1 and has_masks([key]):
        gains = MASK_GAINS
    elif (table := _first(key, TABLES, None)) is not None:
        return 0.0, table
    if not shape:
        return 1.0, 0.1
    if len(shape) == 1:
        return (1.0, 0.2) if key.endswith("weight") else _first(key, biases, (0.0, 0.1))
    return 0.0, _first(key, gains, 1.0) * math.sqrt(3.0 / math.prod(shape[1:]))


def _first(key: str, table: Extra, default: Any) -> Any:
    for part, value in table:
        if part == ".4.weight":
            if "reg_branches" in key and key.endswith(part):
                return value
        elif part in key:
            return value
    return default


def make_inputs(
    seeds: Sequence[int],
    sizes: Sequence[Sequence[int]],
    num_boxes: Sequence[int],
    num_classes: int = 80,
    keep: Sequence[Sequence[int]] | None = None,
    sides: tuple[float, float] = (0.04, 0.25),
) -> tuple[Array, list[Array], list[Array]]:
    """Normalised images (B, 3, H, W), zero-padded, and per image boxes (n, 4) xyxy px and labels
    (n,). ``keep[b]`` selects among the boxes drawn; ``sides`` as for ``draw_boxes``.
    """
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    pixels = np.zeros((len(sizes), 3, height, width), dtype=np.float32)
    boxes, labels = [], []
    for b, ((h, w), count) in enumerate(zip(sizes, num_boxes, strict=True)):
        rng = generator(seeds[b])
        pixels[b, :, :h, :w] = make_image(rng, h, w)
        corners, names = draw_boxes(rng, (h, w), count, num_classes, (0.15, 0.7), sides)
        chosen = np.arange(count) if keep is None else np.asarray(keep[b], dtype=np.int64)
        boxes.append(corners[chosen])
        labels.append(names[chosen])
    return pixels, boxes, labels


def draw_boxes(
    rng: np.random.Generator,
    size: Sequence[int],
    count: int,
    num_classes: int,
    centres: tuple[float, float],
    sides: tuple[float, float],
    power: int = 1,
) -> tuple[Array, Array]:
    """Boxes (n, 4) float32 xyxy px, clipped to an image of ``size``, and labels (n,) int64.
    ``centres`` and ``sides`` are (smallest, range) relative to it; sides grow with the ``power`` of
    the draw.
    """
    span = np.array([size[1], size[0]])
    drawn = rng.random((count, 4))
    centre = (centres[0] + centres[1] * drawn[:, :2]) * span
    half = (sides[0] + sides[1] * drawn[:, 2:] ** power) * span / 2
    corners = np.concatenate([centre - half, centre + half], axis=1).clip(0, np.tile(span, 2))
    return corners.astype(np.float32), np.floor(num_classes * rng.random(count)).astype(np.int64)


def make_boxes(
    seed: int, size: Sequence[int], keep: Sequence[int], drawn: int = 60, num_classes: int = 80
) -> tuple[Array, Array]:
    """The boxes and labels of an image of a single head, as ``draw_boxes``: ``keep`` lists which of
    the ``drawn`` ones, in order.
    """
    rng, chosen = generator(1000 * seed + BOX_STREAM), np.asarray(keep, dtype=np.int64)
    boxes, labels = draw_boxes(rng, size, drawn, num_classes, (0.1, 0.8), (0.06, 0.8), power=2)
    return boxes[chosen], labels[chosen]


def make_features(seeds: Sequence[int], size: Sequence[int]) -> list[Array]:
    """One map (B, 256, h, w) float32 per stride for a single head, of a batch padded to ``size``:
    noise of unit variance everywhere, padding included.
    """
    maps = []
    for level, stride in enumerate(STRIDES):
        shape = (CHANNELS, -(-size[0] // stride), -(-size[1] // stride))
        streams = (generator(1000 * seed + level) for seed in seeds)
        maps.append(np.stack([block_noise(rng, shape, BLOCKS) for rng in streams]))
    return maps


def make_pyramid(
    seeds: Sequence[int], sizes: Sequence[Sequence[int]], levels: int = len(STRIDES)
) -> Pyramid:
    """The finest ``levels`` of images of ``sizes``, float64, with gradients."""
    maps = make_features(seeds, [max(side) for side in zip(*sizes, strict=True)])
    return Pyramid(
        maps=tuple(torch.from_numpy(m).double().requires_grad_() for m in maps[:levels]),
        strides=STRIDES[:levels],
    )


def make_image(rng: np.random.Generator, height: int, width: int) -> Array:
    """(3, H, W): unit-variance noise in blocks of 32, 8 and 1 pixels, weighted 4 : 2 : 1."""
    return block_noise(rng, (3, height, width), ((32, 1.0), (8, 0.5), (1, 0.25)))


def block_noise(
    rng: np.random.Generator, shape: tuple[int, int, int], blocks: Sequence[tuple[int, float]]
) -> Array:
    """(C, H, W) sum of uniform noise of unit variance, in square blocks of each (side, weight)."""
    channels, height, width = shape
    total = np.zeros(shape)
    for side, weight in blocks:
        cells = rng.random((channels, -(-height // side), -(-width // side)))
        noise = (cells - 0.5) * math.sqrt(12.0)
        total += weight * noise.repeat(side, 1).repeat(side, 2)[:, :height, :width]
    return total.astype(np.float32)


def fixed_permutation(n: int) -> Tensor:
    """The replacement of ``torch.randperm`` in recorded runs: ordered by multiplicative hashes."""
    keys = (np.arange(1, n + 1, dtype=np.uint64) * 2654435761) % 2**32
    return torch.from_numpy(np.argsort(keys, kind="stable"))


def make_masks(boxes: Array, size: Sequence[int]) -> Array:
    """(n, H, W) uint8: one mask in each of ``boxes`` (n, 4) xyxy px of an image of ``size``:
    in turn an ellipse, a diamond, an ellipse with a notch, and a ring.
    """
    height, width = size
    columns, rows = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    masks = np.zeros((len(boxes), height, width), dtype=np.uint8)
    for i, (x0, y0, x1, y1) in enumerate(np.asarray(boxes, dtype=np.float64)):
        u = (columns - (x0 + x1) / 2) / ((x1 - x0) / 2)
        v = (rows - (y0 + y1) / 2) / ((y1 - y0) / 2)
        distance = u * u + v * v
        cuts = (
            np.ones_like(distance, dtype=bool),
            np.abs(u) + np.abs(v) <= 1,
            ~((u > 0.1) & (v > -0.2)),
            distance >= 0.2,
        )
        masks[i] = (distance <= 1) & cuts[i % len(cuts)]
    return masks


def make_candidates(
    seed: int, boxes: Array, labels: Array, size: Sequence[int], count: int, num_classes: int = 80
) -> tuple[Array, Array]:
    """Stand-ins for a detector's predictions: (count, 5) float32 xyxy px and score, sorted by
    score, and labels (count,) int64.

    They are shifted copies of ``boxes`` (n, 4): the first half slightly and with its label, the
    second half far and with a random label.
    """
    height, width = size
    drawn = generator(1000 * seed + 998).random((count, 6))
    near = np.arange(count) < count / 2
    own = np.arange(count) % len(boxes)
    x0, y0, x1, y1 = np.asarray(boxes, dtype=np.float64)[own].T
    amount = np.where(near, 0.25, 1.0)
    x = (x0 + x1) / 2 + amount * (drawn[:, 0] - 0.5) * (x1 - x0)
    y = (y0 + y1) / 2 + amount * (drawn[:, 1] - 0.5) * (y1 - y0)
    w = (x1 - x0) * (1 + amount * (drawn[:, 2] - 0.5))
    h = (y1 - y0) * (1 + amount * (drawn[:, 3] - 0.5))
    corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
    corners = corners.clip(0, [width, height, width, height])
    found = np.concatenate([corners, 0.05 + 0.9 * drawn[:, 4:5]], axis=1).astype(np.float32)
    any_label = np.floor(num_classes * drawn[:, 5]).astype(np.int64)
    names = np.where(near, np.asarray(labels, dtype=np.int64)[own], any_label)
    order = np.argsort(-found[:, 4], kind="stable")
    return found[order], names[order]
