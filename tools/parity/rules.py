"""Rules that generate weights and inputs of recorded runs, so that none are stored.

Rule version 1. All draws are by NumPy's PCG64. Weights depend only on a tensor's official name and
shape, images and boxes on a seed. Each value is computed in float64 and rounded once to float32.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

BUILT = ("relative_position_index", "freqs_cos", "freqs_sin", "attn_mask")
"""Suffixes of constants that a model computes itself."""

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

Extra = Sequence[tuple[str, Any]]


def make_tensor(
    key: str, shape: Sequence[int], biases: Extra = (), gains: Extra = ()
) -> Array | None:
    """The value of the state-dict entry ``key``; None if the built value stays.

    ``biases`` and ``gains`` are entries that take precedence over the tables above.
    """
    if key.endswith("num_batches_tracked"):
        return np.zeros(tuple(shape), dtype=np.int64)
    if key.endswith(BUILT):
        return None
    offset, scale = _range(key, tuple(shape), (*biases, *BIASES), (*gains, *GAINS))
    return np.asarray(offset + scale * centred(f"189/{key}", shape), dtype=np.float32)


def generator(seed: int) -> np.random.Generator:
    """The generator of all draws of all rules."""
    return np.random.Generator(np.random.PCG64(seed))


def centred(text: str, shape: Sequence[int]) -> Array:
    """Uniform in [-1, 1), seeded by the CRC-32 of ``text``."""
    values: Array = 2.0 * generator(zlib.crc32(text.encode())).random(size=tuple(shape)) - 1.0
    return values


def _range(key: str, shape: tuple[int, ...], biases: Extra, gains: Extra) -> tuple[float, float]:
    """Middle and half width of the values of ``key``."""
    if key.endswith("running_mean"):
        return 0.0, 0.1
    if key.endswith("running_var"):
        return 1.0, 0.5
    table = _first(key, TABLES, None)
    if table is not None:
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
) -> tuple[Array, list[Array], list[Array]]:
    """Normalised images (B, 3, H, W), zero-padded, and per image boxes (n, 4) xyxy px and labels
    (n,). ``sizes`` are (height, width); ``keep[b]`` selects among the boxes drawn.
    """
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    pixels = np.zeros((len(sizes), 3, height, width), dtype=np.float32)
    boxes, labels = [], []
    for b, ((h, w), count) in enumerate(zip(sizes, num_boxes, strict=True)):
        rng = generator(seeds[b])
        pixels[b, :, :h, :w] = make_image(rng, h, w)
        x, y, bw, bh = rng.random((count, 4)).T
        x, y = (0.15 + 0.7 * x) * w, (0.15 + 0.7 * y) * h
        bw, bh = (0.04 + 0.25 * bw) * w, (0.04 + 0.25 * bh) * h
        corners = np.stack([x - bw / 2, y - bh / 2, x + bw / 2, y + bh / 2], axis=1)
        corners = corners.clip(0, [w, h, w, h]).astype(np.float32)
        names = np.floor(num_classes * rng.random(count)).astype(np.int64)
        chosen = np.arange(count) if keep is None else np.asarray(keep[b], dtype=np.int64)
        boxes.append(corners[chosen])
        labels.append(names[chosen])
    return pixels, boxes, labels


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
