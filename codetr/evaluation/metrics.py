"""COCO detection metrics of a set of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from codetr.evaluation.detection_metric import EncodedMasks
from codetr.evaluation.ground_truth import ImageTruth
from codetr.evaluation.per_class import ClassCurves, Rows, class_curves, mean

PER_CLASS = ("AP", "AP50", "AR")
"""The metrics of each class; AR with as many detections as AP."""

MAX_DETECTIONS = (1, 10, 100)
"""Detections per image and class that count, best first: one AR for each number; AP and the rest
use the last.
"""
IOU50, IOU75 = 0, 5  # positions among the ten thresholds 0.5, 0.55 ... 0.95
_AREAS = {"s": 1, "m": 2, "l": 3}  # positions of small, medium and large among the areas


@dataclass(frozen=True, kw_only=True)
class CocoMetrics:
    """``summary``: metrics over all classes by name; ``per_class``: those in ``PER_CLASS`` of each
    class, in class order.

    All are in [0, 1], or -1 where there is no ground truth (COCO's convention).
    """

    summary: dict[str, float]
    per_class: tuple[Mapping[str, float], ...]


def coco_metrics(
    detections: Mapping[int, Tensor],
    truth: Mapping[int, ImageTruth],
    num_classes: int,
    max_detections: Sequence[int] = MAX_DETECTIONS,
    masks: Mapping[int, EncodedMasks] | None = None,
) -> CocoMetrics:
    """Evaluate ``detections``: by image id, rows (n, 6) float64 of label, score and x, y, w, h in
    pixels. With ``masks`` (in the same order), evaluate these instead of the boxes. ``truth`` must
    hold these images.
    """
    wanted = Rows.of_truth({image: truth[image] for image in detections}, masks is not None)
    found = Rows.of_detections(detections) if masks is None else Rows.of_masks(detections, masks)
    curves = [
        _class_curves(wanted.of_class(label), found.of_class(label), max_detections)
        for label in range(num_classes)
    ]
    precision = np.stack([p for p, _ in curves])  # (K, 10 IoUs, 101 recalls, 4 areas, M)
    recall = np.stack([r for _, r in curves])  # (K, 10, 4, M)
    best, all_areas = precision[..., -1], precision[..., 0, -1]
    return CocoMetrics(
        summary={
            "AP": mean(all_areas),
            "AP50": mean(all_areas[:, IOU50]),
            "AP75": mean(all_areas[:, IOU75]),
            **{f"AP{name}": mean(best[..., area]) for name, area in _AREAS.items()},
            **{f"AR{m}": mean(recall[:, :, 0, i]) for i, m in enumerate(max_detections)},
            **{f"AR{name}": mean(recall[:, :, area, -1]) for name, area in _AREAS.items()},
        },
        per_class=class_numbers(all_areas, recall[:, :, 0, -1]),
    )


def class_numbers(
    precision: NDArray[np.float64], recall: NDArray[np.float64]
) -> tuple[dict[str, float], ...]:
    """The metrics in ``PER_CLASS`` of each class, from ``precision`` (K, 10 IoUs, 101 recalls) and
    ``recall`` (K, 10); -1 in both means not measured.
    """
    return tuple(
        dict(zip(PER_CLASS, (mean(p), mean(p[IOU50]), mean(r)), strict=True))
        for p, r in zip(precision, recall, strict=True)
    )


def _class_curves(wanted: Rows, found: Rows, max_detections: Sequence[int]) -> ClassCurves:
    if not len(wanted):
        shape = (4, len(max_detections))
        return np.full((10, 101, *shape), -1.0), np.full((10, *shape), -1.0)
    # Detections with equal scores are ranked in the order of the images.
    images = np.union1d(wanted.images, found.images).tolist()
    frame = {"images": [{"id": image} for image in images], "categories": [{"id": 1, "name": ""}]}
    return class_curves(frame, wanted, found, max_detections)
