"""Rules that generate weights of mask heads and masks of objects of recorded runs (version 1).

They extend ``rules``, which applies unchanged to all other names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tools.parity import rules
from tools.parity.rules import Array, Extra

BRANCHES = ("mask_head", "mask_iou_head")
CENTRED = "stage_instance_logits"
GAINS = (
    ("conv_logits.weight", 6.0),
    (CENTRED, 6.0),
    ("upsample.weight", 3.0),
    ("merge_conv", 0.7),
    ("fc_mask_iou.weight", 2.0),
)
"""(part of the name, gain) of the matrices of mask heads, as in ``rules.GAINS``."""
GAIN = 1.5


def has_masks(keys: Sequence[str]) -> bool:
    """Whether a state dict with these ``keys`` has a mask head."""
    return any(branch in key for key in keys for branch in BRANCHES)


def make_tensor(
    key: str, shape: Sequence[int], biases: Extra = (), gains: Extra = ()
) -> Array | None:
    """As ``rules.make_tensor``."""
    if len(shape) < 2 or not has_masks([key]):
        return rules.make_tensor(key, shape, biases, gains)
    gain = next((gain for part, gain in GAINS if part in key), GAIN)
    scale = gain * math.sqrt(3.0 / float(math.prod(shape[1:])))
    values = scale * rules.centred(f"189/{key}", shape)
    if CENTRED in key:
        values = values - values.mean(axis=1, keepdims=True)
    return np.asarray(values, dtype=np.float32)


def make_masks(boxes: Array, size: Sequence[int]) -> Array:
    """(n, H, W) uint8: one mask in each of ``boxes`` (n, 4) xyxy px of an image of ``size``
    (height, width): in turn an ellipse, a diamond, an ellipse with a notch, and a ring.
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
    drawn = rules.generator(1000 * seed + 998).random((count, 6))
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
