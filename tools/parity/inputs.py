"""Images and boxes of a recorded run, and the batch made from them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codetr.boxes import xyxy_to_cxcywh
from codetr.structures import Batch, ImageInfo, Images, Targets
from tools.parity.rules import Array


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """``pixels`` (B, 3, H, W) normalised and zero-padded, of images of ``sizes`` (height, width).
    Per image: ``boxes`` (n, 4) xyxy px, ``labels`` (n,), ``relative`` boxes (n, 4) cxcywh in [0, 1]
    if the rule computes them itself, and ``masks`` (n, h, w) if there are any.
    """

    pixels: Array
    sizes: Sequence[Sequence[int]]
    boxes: list[Array]
    labels: list[Array]
    relative: list[Array] | None = None
    masks: list[Array] | None = None


def input_values(inputs: Inputs) -> dict[str, Any]:
    """Everything that records hold of inputs, by name."""
    pixels = inputs.pixels
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    values = {
        "in/image_crc32_f32": np.array([zlib.crc32(pixels.tobytes())]),
        "in/image_sample": pixels,
        "image_first": pixels[:, :, :2, :8],
        "image_mean_std": np.stack([flat.mean(1), flat.std(1)], axis=1),
    }
    for b, (boxes, labels) in enumerate(zip(inputs.boxes, inputs.labels, strict=True)):
        values |= {f"in/gt{b}_boxes": boxes, f"in/gt{b}_labels": labels}
        values |= {f"gt_labels_{b}": labels, f"target_labels_{b}": labels}
    for b, boxes in enumerate(inputs.relative or ()):
        values |= {f"gt_boxes_cxcywh_{b}": boxes, f"target_boxes_{b}": boxes}
    return values | {f"in/gt{b}_masks": masks for b, masks in enumerate(inputs.masks or ())}


def make_batch(
    inputs: Inputs, dtype: torch.dtype = torch.float64, whole_canvas: bool = False
) -> Batch:
    """The recorded inputs as a batch. Under large-scale jitter (``whole_canvas``) the whole padded
    batch counts as image, as in the official code without an attention mask.
    """
    canvas, own = torch.tensor(inputs.pixels.shape[2:]), torch.tensor(inputs.sizes)
    sizes = canvas.expand_as(own) if whole_canvas else own
    padding = torch.ones(len(sizes), *inputs.pixels.shape[2:], dtype=torch.bool)
    for mask, (height, width) in zip(padding, sizes.tolist(), strict=True):
        mask[:height, :width] = False
    targets = []
    for b, size in enumerate(sizes):
        masks = None
        if inputs.masks is not None:
            bottom, right = (size - own[b]).tolist()
            masks = F.pad(torch.from_numpy(inputs.masks[b]), (0, right, 0, bottom))
        relative = None if inputs.relative is None else inputs.relative[b]
        targets.append(
            targets_of(inputs.boxes[b], inputs.labels[b], size.flip(0), dtype, masks, relative)
        )
    return Batch(
        images=Images(
            pixels=torch.from_numpy(inputs.pixels).to(dtype),
            padding=padding,
            sizes=sizes,
            padded_sizes=sizes,
        ),
        targets=tuple(targets),
        infos=tuple(
            ImageInfo(image_id=b, original_size=(int(h), int(w)), scale=(1.0, 1.0))
            for b, (h, w) in enumerate(inputs.sizes)
        ),
    )


def targets_of(
    boxes: Array,
    labels: Array,
    size: Tensor,
    dtype: torch.dtype = torch.float64,
    masks: Tensor | None = None,
    relative: Array | None = None,
) -> Targets:
    """Targets from arrays: ``boxes`` (n, 4) xyxy px and ``labels`` (n,) of an image of ``size``
    (2,) width and height, with ``masks`` (n, H, W). ``relative`` (n, 4) cxcywh replaces ``boxes``.
    """
    size = size.to(dtype)
    if relative is None:
        found = xyxy_to_cxcywh(torch.from_numpy(boxes).to(dtype)) / size.repeat(2)
    else:
        found = torch.from_numpy(relative).to(dtype)
    return Targets(
        boxes=found,
        labels=torch.from_numpy(labels),
        weights=torch.ones(len(labels), dtype=dtype),
        size=size,
        masks=masks,
    )
