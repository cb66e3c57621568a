"""Masks as COCO's run lengths, which stay small for large images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from numpy.typing import NDArray
from torch import Tensor

from codetr.data.segmentation import RunLengths, compressed, read_polygons
from codetr.evaluation.detection_metric import EncodedMasks
from codetr.masks import cropped_masks
from codetr.structures import Detections


def encode(found: Detections, size: tuple[int, int]) -> EncodedMasks:
    """The masks of ``found`` as run lengths of the image of ``size`` (height, width) in pixels.
    Raises ValueError if the detections have no masks.
    """
    if found.cells is None:
        raise ValueError("these detections have no masks")
    # One copy from the device for all masks; the cells are few compared with the pasted pixels.
    cells, boxes = found.cells.probabilities.cpu(), found.boxes_xyxy_px.cpu()
    parts = cropped_masks(cells, boxes, size)
    plain = [{"size": size, "counts": _runs(part.numpy(), window, size)} for part, window in parts]
    counts = [rle.frPyObjects(one, *size)["counts"] for one in plain]
    return EncodedMasks(counts=counts, scores=found.cells.scores, size=size)


def _runs(
    part: NDArray[np.bool_], window: tuple[int, int, int, int], size: tuple[int, int]
) -> list[int]:
    """Uncompressed run lengths, column by column, of an image of ``size`` that holds ``part`` in
    its ``window`` (top, bottom, left, right) and is empty elsewhere.
    """
    top, _, left, _ = window
    (rows, columns), pixels = part.shape, size[0] * size[1]
    closed = np.zeros((columns, rows + 1), np.int8)  # one empty row ends each column's runs
    closed[:, :rows] = part.T
    column, row = np.divmod(np.flatnonzero(np.diff(closed.ravel(), prepend=0)), rows + 1)
    changes, times = np.unique((left + column) * size[0] + top + row, return_counts=True)
    # Found twice: a run that continues from the last row of the image in the next column.
    changes = changes[(times == 1) & (changes < pixels)]
    lengths: list[int] = np.diff(changes, prepend=0, append=pixels).tolist()
    return lengths


def run_lengths(masks: EncodedMasks) -> list[RunLengths]:
    """The RLE of each mask."""
    return [{"size": list(masks.size), "counts": counts} for counts in masks.counts]


def decode(masks: Sequence[RunLengths], size: tuple[int, int]) -> Tensor:
    """Bitmaps (n, H, W) bool of the masks of an image of ``size`` (height, width) in pixels."""
    found = torch.zeros(len(masks), *size, dtype=torch.bool)
    for bitmap, one in zip(found, masks, strict=True):
        bitmap.copy_(torch.from_numpy(rle.decode(one)))
    return found


def encode_segmentation(segmentation: Any, size: tuple[int, int]) -> RunLengths:
    """The RLE of a COCO annotation's ``segmentation`` in an image of ``size`` (height, width):
    polygons, whose union is the mask, or run lengths, compressed or not. Raises ValueError,
    TypeError or KeyError for anything else.
    """
    if isinstance(segmentation, Mapping):
        return compressed(segmentation, list(size))
    polygons = [polygon.tolist() for polygon in read_polygons(segmentation)]
    merged: RunLengths = rle.merge(rle.frPyObjects(polygons, *size))
    return merged
