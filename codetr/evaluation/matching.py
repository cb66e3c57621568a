"""Matching of detections and ground-truth boxes at IoU 0.5, image by image.

By COCO's rules: detections are matched in order of score, a limited number per image and class
count, and an unmatched detection in a crowd region of its class is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from codetr.evaluation.ground_truth import ImageTruth

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

IOU = 0.5
"""The least IoU of a match."""
NONE = -1
"""Index of an unmatched detection."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The D detections of one image, best score first, and its G ground-truth boxes (without crowd
    regions).

    ``labels`` and ``scores`` (D,); ``true_labels`` (G,); ``iou`` (D, G); ``partner`` (D,): index of
    the matched box of the same class, or ``NONE``; ``in_crowd`` (D,): whether the detection lies in
    a crowd region of its class.
    """

    labels: Ints
    scores: Floats
    true_labels: Ints
    iou: Floats
    partner: Ints
    in_crowd: Bools

    @property
    def ignored(self) -> Bools:
        """(D,) neither a true nor a false positive."""
        return (self.partner == NONE) & self.in_crowd

    @property
    def same_class(self) -> Bools:
        """(D, G) whether detection and ground-truth box have the same class."""
        return self.labels[:, None] == self.true_labels[None, :]


def make_scene(detections: Tensor, truth: ImageTruth, max_detections: int) -> Scene:
    """Match the detections of an image: rows (n, 6) float64 of label, score and x, y, w, h in
    pixels, of which the best ``max_detections`` of each class count (ties: the first ones).
    """
    rows = detections.numpy()
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    rows = rows[rank_in_class(rows[:, 0]) < max_detections]
    labels, boxes = rows[:, 0].astype(np.int64), rows[:, 2:]
    true_boxes, true_labels = truth.boxes_xywh_px.numpy(), truth.labels.numpy()
    crowd = truth.crowd.numpy() == 1
    shared = intersection(boxes, true_boxes)
    area, true_area = boxes[:, 2] * boxes[:, 3], true_boxes[:, 2] * true_boxes[:, 3]
    iou = ratio(shared, area[:, None] + true_area[None, :] - shared)[:, ~crowd]
    inside = ratio(shared, np.broadcast_to(area[:, None], shared.shape))[:, crowd]
    same = labels[:, None] == true_labels[None, :]
    return Scene(
        labels=labels,
        scores=rows[:, 1],
        true_labels=true_labels[~crowd],
        iou=iou,
        partner=match(np.where(same[:, ~crowd], iou, NONE)),
        in_crowd=((inside >= IOU) & same[:, crowd]).any(axis=1),
    )


def make_scenes(
    detections: Mapping[int, Tensor], truth: Mapping[int, ImageTruth], max_detections: int
) -> list[Scene]:
    """One scene per image in ``detections``, sorted by image id."""
    return [make_scene(detections[i], truth[i], max_detections) for i in sorted(detections)]


def match(overlap: Floats, least: float = IOU) -> Ints:
    """Match the rows of ``overlap`` (D, G) greedily in their order: each takes the free column of
    its largest overlap (ties: the last one, as in COCO), if it is at least ``least``. Returns the
    columns (D,), ``NONE`` for unmatched rows.
    """
    partner = np.full(len(overlap), NONE)
    free = overlap.copy()
    for row in np.flatnonzero((overlap >= least).any(axis=1)):
        column = free.shape[1] - 1 - int(free[row, ::-1].argmax())
        if free[row, column] >= least:
            partner[row] = column
            free[:, column] = NONE
    return partner


def intersection(a: Floats, b: Floats) -> Floats:
    """Intersection area (D, G) of boxes (D, 4) and (G, 4), both x, y, w, h."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    sides = (high - low).clip(min=0)
    return sides[..., 0] * sides[..., 1]


def ratio(part: Floats, whole: Floats) -> Floats:
    """``part / whole``; 0 where ``whole`` is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def rank_in_class(labels: Floats) -> Ints:
    """For each of ``labels`` (D,), the number of equal labels before it (D,)."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first = np.searchsorted(ordered, ordered, side="left")
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - first
    return rank
