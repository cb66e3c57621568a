"""Masks as COCO's run lengths, which are small whatever the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from torch import Tensor

from codetr.evaluation.detection_metric import EncodedMasks
from codetr.masks import paste
from codetr.structures import Detections

AT_ONCE = 2**25
"""Pixels of bitmaps that are made before they are encoded."""

RunLengths = Mapping[str, Any]
"""``size``: [height, width]; ``counts``: compressed, as bytes. What pycocotools calls an RLE."""


def encode(found: Detections, size: tuple[int, int]) -> EncodedMasks:
    """The masks of ``found``, pasted into their image of ``size`` (height, width), as run lengths.
    Raises ValueError where there are none.
    """
    if found.cells is None:
        raise ValueError("these detections have no masks")
    counts: list[bytes] = []
    block = max(1, AT_ONCE // max(size[0] * size[1], 1))
    parts = zip(
        found.cells.probabilities.split(block), found.boxes_xyxy_px.split(block), strict=True
    )
    for probabilities, boxes in parts:
        bitmaps = paste(probabilities, boxes, size).to("cpu").numpy().view(np.uint8)
        # (n, W, H) in memory, which run lengths go down the columns of
        columns = np.ascontiguousarray(bitmaps.transpose(0, 2, 1))
        counts += [one["counts"] for one in rle.encode(columns.transpose(2, 1, 0))]
    return EncodedMasks(counts=counts, scores=found.cells.scores, size=size)


def run_lengths(masks: EncodedMasks) -> list[RunLengths]:
    """Each mask as pycocotools has it."""
    return [{"size": list(masks.size), "counts": counts} for counts in masks.counts]


def decode(masks: Sequence[RunLengths], size: tuple[int, int]) -> Tensor:
    """(n, H, W) bool of run lengths of an image of ``size`` (height, width)."""
    found = torch.zeros(len(masks), *size, dtype=torch.bool)
    for bitmap, one in zip(found, masks, strict=True):
        bitmap.copy_(torch.from_numpy(rle.decode(one)))
    return found


def encode_segmentation(segmentation: Any, size: tuple[int, int]) -> RunLengths:
    """What an annotation of an image of ``size`` calls its segmentation: polygons, of which all
    make one object, or run lengths as a list or compressed. Raises ValueError, TypeError or
    KeyError for anything else.
    """
    height, width = size
    if isinstance(segmentation, Mapping):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"run lengths of size {segmentation['size']} in an image of {size}")
        counts = segmentation["counts"]
        if isinstance(counts, list):
            found: RunLengths = rle.frPyObjects(dict(segmentation), height, width)
            return found
        text = counts.encode() if isinstance(counts, str) else counts
        return {"size": [height, width], "counts": text}
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"it is {segmentation!r}")
    merged: RunLengths = rle.merge(rle.frPyObjects(segmentation, height, width))
    return merged
