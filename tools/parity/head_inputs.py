"""The rule for feature maps and boxes of recorded runs of a single head (rule version 1).

All draws are by NumPy's PCG64, with one generator per image and level and one per image for its
boxes, so that they are independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from codetr.structures import Pyramid
from tools.parity.rules import Array, block_noise, generator

STRIDES = (4, 8, 16, 32, 64, 128)
CHANNELS = 256
BLOCKS = ((4, 0.8), (1, 0.6))
"""(side, weight) of the noise."""
BOX_STREAM = 999
"""Stream number of the generator of boxes; that of a map is its level."""


def make_features(seeds: Sequence[int], size: Sequence[int]) -> list[Array]:
    """One map (B, 256, h, w) float32 per stride, of a batch padded to ``size`` (height, width).

    Noise of unit variance everywhere, padding included: in blocks of 4 x 4 cells and cell by cell.
    """
    height, width = size
    return [
        np.stack([_map(seed, level, -(-height // s), -(-width // s)) for seed in seeds])
        for level, s in enumerate(STRIDES)
    ]


def make_boxes(
    seed: int, size: Sequence[int], keep: Sequence[int], drawn: int = 60, num_classes: int = 80
) -> tuple[Array, Array]:
    """Boxes (n, 4) float32 xyxy px of an image of ``size`` (height, width), and labels (n,) int64:
    ``keep`` lists which of the ``drawn`` ones, in order.
    """
    height, width = size
    rng = generator(1000 * seed + BOX_STREAM)
    x, y, w, h = rng.random((drawn, 4)).T
    x, y = (0.1 + 0.8 * x) * width, (0.1 + 0.8 * y) * height
    half_w, half_h = (0.06 + 0.8 * w**2) * width / 2, (0.06 + 0.8 * h**2) * height / 2
    corners = np.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=1)
    corners = corners.clip(0, [width, height, width, height]).astype(np.float32)
    labels = np.floor(num_classes * rng.random(drawn)).astype(np.int64)
    chosen = np.asarray(keep, dtype=np.int64)
    return corners[chosen], labels[chosen]


def make_pyramid(
    seeds: Sequence[int], sizes: Sequence[Sequence[int]], levels: int = len(STRIDES)
) -> Pyramid:
    """The finest ``levels`` of images of ``sizes`` (height, width), float64, with gradients."""
    maps = make_features(seeds, [max(side) for side in zip(*sizes, strict=True)])
    return Pyramid(
        maps=tuple(torch.from_numpy(m).double().requires_grad_() for m in maps[:levels]),
        strides=STRIDES[:levels],
    )


def _map(seed: int, level: int, height: int, width: int) -> Array:
    rng = generator(1000 * seed + level)
    return block_noise(rng, (CHANNELS, height, width), BLOCKS)
