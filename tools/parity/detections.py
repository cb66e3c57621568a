"""Detections of a recorded run of DETR's family against ours.

The official boxes are not clipped to the image, ours are: the recorded ones are clipped here. The
size of the image's file, where it is not recorded, is the one in whole pixels that fits the boxes
best.
Detections whose scores are equal in float32 have no order: they are paired first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from codetr.structures import Detections
from tools.parity.recorded_detr import RecordedDetr
from tools.parity.table import Row, Tolerance, compare

SCORES = Tolerance(absolute=1e-6, relative=1e-5)
PIXELS = Tolerance(absolute=2e-3)
WRONG_LABEL = 1e6
"""Cost of pairing two labels, far above any difference of scores or boxes."""

Array = np.ndarray[Any, Any]


def detection_rows(recorded: RecordedDetr, image: int, found: Detections) -> list[Row]:
    """Scores, labels and boxes of image ``image``; ``found`` has boxes clipped to the image and
    relative to it, best score first, and at least as many as are recorded.
    """
    names = [f"post_{part}_{image}" for part in ("scores", "labels", "boxes")]
    scores, labels, boxes = (recorded.arrays[name] for name in names)
    ours = found.take(slice(len(scores)))
    own_scores, own_labels, relative = map(_numpy, (ours.scores, ours.labels, ours.boxes_xyxy_px))
    if relative.shape != boxes.shape:
        return [compare(names[2], relative, boxes)]
    said = recorded.keys.get("original_sizes")
    size = _whole_size(relative, boxes) if said is None else np.array(said[image][::-1] * 2)
    own_boxes, clipped = relative * size, boxes.clip(0, size)
    cost = np.abs(own_scores - scores[:, None]) / SCORES.absolute
    cost += np.abs(own_boxes - clipped[:, None]).max(-1)
    cost += WRONG_LABEL * (own_labels != labels[:, None])
    _, order = linear_sum_assignment(cost)
    return [
        compare(names[0], own_scores[order], scores, SCORES),
        compare(names[1], own_labels[order], labels),
        compare(names[2], own_boxes[order], clipped, PIXELS),
    ]


def _whole_size(relative: Array, pixels: Array) -> Array:
    """(4,) width, height, width, height."""
    size = []
    for axis in (0, 1):
        a, b = relative[:, axis::2].reshape(-1), pixels[:, axis::2].reshape(-1)
        inside = (a > 0.05) & (a < 1)
        size.append(np.round(np.median(b[inside] / a[inside])))
    return np.array(size * 2)


def _numpy(value: Tensor) -> Array:
    array: Array = value.detach().cpu().numpy()
    return array
