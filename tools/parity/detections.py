"""Compare detections with those of a recorded run of DETR's family.

Ours are clipped to the image, the official ones are not, so the recorded ones are clipped here. If
the original image size is not recorded, it is estimated from the boxes, in whole pixels. Detections
whose scores are equal in float32 have no order, so they are paired first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from codetr.evaluation import Postprocess
from codetr.structures import Batch, Detections, Predictions
from tools.parity.recorded import Recorded
from tools.parity.rules import Array
from tools.parity.table import Row, Tolerance, compare

SCORES = Tolerance(absolute=1e-6, relative=1e-5)
PIXELS = Tolerance(absolute=2e-3)
WRONG_LABEL = 1e6
"""Cost of pairing different labels, far above any difference of scores or boxes."""


def best_detections(
    recorded: Recorded, last: Predictions, batch: Batch, limit: int
) -> Iterator[Row]:
    """Scores, labels and boxes of the ``limit`` best detections of every recorded image."""
    unit = torch.ones_like(batch.images.sizes)
    for b, found in enumerate(Postprocess(max_detections=limit)(last, unit, batch.infos)):
        if f"post_scores_{b}" in recorded.arrays:
            yield from _rows(recorded, b, found)


def _rows(recorded: Recorded, image: int, found: Detections) -> list[Row]:
    """``found`` has boxes clipped to the image and relative to it, sorted by score, and at least as
    many as are recorded.
    """
    names = [f"post_{part}_{image}" for part in ("scores", "labels", "boxes")]
    scores, labels, boxes = (recorded.arrays[name] for name in names)
    ours = found.take(slice(len(scores)))
    own_scores, own_labels, relative = (
        value.detach().numpy() for value in (ours.scores, ours.labels, ours.boxes_xyxy_px)
    )
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
