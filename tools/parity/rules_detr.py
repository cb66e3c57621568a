"""Rules that generate weights and inputs of recorded runs of DETR's family (rule D1).

As ``rules``, with other names and ranges: draws by NumPy's PCG64; a weight depends only on its
official name and shape, an image and its boxes on a seed. Each value is computed in float64 and
rounded once to float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tools.parity.inputs import Inputs
from tools.parity.rules import Array, centred
from tools.parity.rules import make_inputs as make_any

PROPOSAL_BIAS = (0.0, 0.0, 1.2, 1.2)
"""Mean of the proposals' last box bias: boxes larger than their anchors."""

BOX_GAIN, PROPOSAL_CLASS_GAIN = 0.3, -1.0
"""Gains of last box layers, and of the proposals' class layer (void tokens rank last)."""


def make_tensor(
    key: str, shape: Sequence[int], overrides: Sequence[Mapping[str, Any]] = ()
) -> Array:
    """The weight of an official name. The first of ``overrides`` whose ``pattern`` fully matches
    the name replaces the rule: by ``gain``, or by ``offset`` (a number, or one per entry of the
    last axis) and ``scale``.
    """
    chosen = next((o for o in overrides if re.fullmatch(o["pattern"], key)), None)
    if chosen is None:
        middle, width = _range(key, tuple(shape))
    elif "gain" in chosen:
        middle, width = 0.0, chosen["gain"] * _fan(shape)
    else:
        middle, width = np.asarray(chosen["offset"]), chosen["scale"]
    return np.asarray(middle + width * centred(key, shape), dtype=np.float32)


def _fan(shape: Sequence[int]) -> float:
    """Half width that preserves the variance of a layer's inputs."""
    return math.sqrt(3.0 / math.prod(shape[1:]))


def _range(key: str, shape: tuple[int, ...]) -> tuple[Any, float]:
    """Middle and half width of the values of ``key``."""
    if key.endswith(("running_mean", "running_var")):
        return (0.0, 0.1) if key.endswith("mean") else (1.0, 0.5)
    if key.endswith("query_embed.weight"):
        return 0.0, 1.0
    if len(shape) > 1:
        gain = 1.0
        if re.fullmatch(r"bbox_embed\.\d+\.layers\.2\.weight", key):
            gain = BOX_GAIN
        elif key == "class_embed.6.weight":
            gain = PROPOSAL_CLASS_GAIN
        return 0.0, gain * _fan(shape)
    if shape and key.endswith("weight"):
        return 1.0, 0.2
    if key.endswith("sampling_offsets.bias"):
        return 0.0, 2.0
    if key == "bbox_embed.6.layers.2.bias":
        return np.asarray(PROPOSAL_BIAS), 0.1
    if re.fullmatch(r"class_embed\.\d+\.bias", key):
        return -2.0, 0.1
    return (0.0, 0.1) if shape else (0.0, _fan(shape))


def make_inputs(
    seed: int, sizes: Sequence[Sequence[int]], num_boxes: Sequence[int], num_classes: int = 91
) -> Inputs:
    """A batch of images of ``sizes`` (height, width) with ``num_boxes`` boxes each."""
    seeds = [1000 * seed + b for b in range(len(sizes))]
    pixels, boxes, labels = make_any(seeds, sizes, num_boxes, num_classes, sides=(0.1, 0.5))
    relative = []
    for corners, (height, width) in zip(boxes, sizes, strict=True):  # in float32
        size = np.array([width, height], dtype=np.float32)
        low, high = corners[:, :2], corners[:, 2:]
        relative.append(np.concatenate([(low + high) / 2 / size, (high - low) / size], axis=1))
    return Inputs(pixels=pixels, sizes=sizes, boxes=boxes, labels=labels, relative=relative)
