"""COCO detection metrics of a set of images, by torchmetrics with the faster-coco-eval backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from codetr.evaluation.ground_truth import ImageTruth

SUMMARY = {
    "AP": "map",
    "AP50": "map_50",
    "AP75": "map_75",
    "APs": "map_small",
    "APm": "map_medium",
    "APl": "map_large",
    "AR1": "mar_1",
    "AR10": "mar_10",
    "AR100": "mar_100",
    "ARs": "mar_small",
    "ARm": "mar_medium",
    "ARl": "mar_large",
}
"""Our names of the twelve COCO numbers, in COCO's order, and torchmetrics' names."""

SMALLEST_AREA = 1e-9


@dataclass(frozen=True, kw_only=True)
class CocoMetrics:
    """``summary`` the twelve COCO numbers by name; ``per_class`` AP of every class, in class order.

    All lie in [0, 1]; -1 where there is no ground truth to measure it on (COCO's convention).
    """

    summary: dict[str, float]
    per_class: tuple[float, ...]


def coco_metrics(
    detections: Mapping[int, Tensor], truth: Mapping[int, ImageTruth], num_classes: int
) -> CocoMetrics:
    """Evaluate the images in ``detections``: by image id, rows (n, 6) float64 of label, score and
    x, y, w, h in pixels. ``truth`` must know these images.
    """
    metric = MeanAveragePrecision(
        box_format="xywh",
        # The defaults of torchmetrics are rounded to float32, which shifts recalls such as 0.1
        # past their threshold: these are pycocotools' double-precision values.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
        max_detection_thresholds=[1, 10, 100],
        extended_summary=True,
        backend="faster_coco_eval",
        sync_on_compute=False,
    )
    metric.warn_on_many_detections = False
    for image_id in sorted(detections):  # equal scores are ranked in the order of the images
        metric.update([_predicted(detections[image_id])], [_true(truth[image_id])])
    result = metric.compute()
    return CocoMetrics(
        summary={name: float(result[key]) for name, key in SUMMARY.items()},
        per_class=_class_ap(result, num_classes),
    )


def _predicted(rows: Tensor) -> dict[str, Tensor]:
    return {"boxes": rows[:, 2:], "scores": rows[:, 1], "labels": rows[:, 0].long()}


def _true(image: ImageTruth) -> dict[str, Tensor]:
    return {
        "boxes": image.boxes_xywh_px,
        "labels": image.labels,
        "iscrowd": image.crowd,
        # torchmetrics replaces an area of 0 by that of the box, COCO does not.
        "area": image.area.clamp(min=SMALLEST_AREA),
    }


def _class_ap(result: Mapping[str, Tensor], num_classes: int) -> tuple[float, ...]:
    """Mean precision over IoU and recall thresholds; class_metrics=True would do the whole
    evaluation once more for every class.
    """
    ap = torch.full((num_classes,), -1.0, dtype=torch.float64)
    observed = result["classes"].reshape(-1).tolist()
    for position, label in enumerate(observed):
        precision = result["precision"][:, :, position, 0, -1]  # all areas, 100 detections
        if (precision > -1).any():
            ap[label] = precision[precision > -1].mean()
    return tuple(ap.tolist())
