"""Precision and recall of one class after another, by faster-coco-eval.

All numbers of COCO and LVIS are means over classes, so each class can be measured by itself: the
library wants a dict for every box, and those of one class are few. All classes of LVIS at once
would also be 24 million pairs of image and class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from torch import Tensor

from codetr.evaluation.ground_truth import ImageTruth

Curves = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Precision (10 IoU thresholds, 101 recalls, 4 areas, M) and recall (10, 4, M), where the M best
detections of each image count; -1 where there is no box to be found.
"""


@dataclass(frozen=True)
class Rows:
    """Boxes of many images, sorted by label, in an image in the order they came: ``images`` (n,),
    ``labels`` (n,), ``values`` (n, 7): x, y, w, h, area (px and px^2), score, crowd region.
    """

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of_detections(cls, detections: Mapping[int, Tensor], limit: int | None = None) -> Rows:
        """The ``limit`` best of each image, or all of them; rows (n, 6) label, score, x, y, w, h
        by image id.
        """
        parts = [detections[image] for image in sorted(detections)]
        if limit is not None:
            parts = [
                part[part[:, 1].argsort(descending=True, stable=True)[:limit]] for part in parts
            ]
        images = np.repeat(sorted(detections), [len(part) for part in parts])
        table = torch.cat([torch.zeros(0, 6, dtype=torch.float64), *parts]).numpy()
        boxes, scores = table[:, 2:], table[:, 1]
        area = boxes[:, 2] * boxes[:, 3]
        crowd = np.zeros(len(table))
        return cls._sorted(images, table[:, 0], np.column_stack([boxes, area, scores, crowd]))

    @classmethod
    def of_truth(cls, truth: Mapping[int, ImageTruth]) -> Rows:
        """All boxes, with score 1."""
        ordered = [truth[image] for image in sorted(truth)]
        labels = torch.cat([t.labels for t in ordered]).numpy()
        images = np.repeat(sorted(truth), [len(t.labels) for t in ordered])
        boxes, area, crowd = (
            torch.cat([getattr(t, name) for t in ordered]).numpy()
            for name in ("boxes_xywh_px", "area", "crowd")
        )
        return cls._sorted(
            images, labels, np.column_stack([boxes, area, np.ones(len(labels)), crowd])
        )

    @classmethod
    def _sorted(
        cls, images: NDArray[Any], labels: NDArray[Any], values: NDArray[np.float64]
    ) -> Rows:
        whole = labels.astype(np.int64)
        order = whole.argsort(kind="stable")
        return cls(images.astype(np.int64)[order], whole[order], values[order])

    def of_class(self, label: int) -> Rows:
        """Those of one class."""
        low, high = np.searchsorted(self.labels, [label, label + 1])
        return Rows(self.images[low:high], self.labels[low:high], self.values[low:high])

    def within(self, images: set[int]) -> Rows:
        """Those in some images."""
        inside = np.isin(self.images, list(images))
        return Rows(self.images[inside], self.labels[inside], self.values[inside])

    def annotations(self) -> list[dict[str, Any]]:
        """As COCO annotations of category 1."""
        return [
            {
                "id": number,
                "image_id": image,
                "category_id": 1,
                "bbox": box,
                "area": area,
                "score": score,
                "iscrowd": int(crowd),
            }
            for number, (image, (*box, area, score, crowd)) in enumerate(
                zip(self.images.tolist(), self.values.tolist(), strict=True), start=1
            )
        ]


def class_curves(
    frame: Mapping[str, Any],
    wanted: Rows,
    found: Rows,
    max_detections: Sequence[int],
    lvis: bool = False,
) -> Curves:
    """The curves of one class; ``frame`` holds the ``images`` and the ``categories`` (of which
    there is one, with id 1) of its COCO data set. With ``lvis``, lists of these images say where
    the class counts.
    """
    evaluation = COCOeval_faster(
        COCO({**frame, "annotations": wanted.annotations()}),
        COCO({**frame, "annotations": found.annotations()}),
        "bbox",
        print_function=_silent,
        lvis_style=lvis,
    )
    evaluation.params.maxDets = list(max_detections)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0], evaluation.eval["recall"][:, 0]


def mean(values: NDArray[np.float64]) -> float:
    """Over what was measured; -1 where nothing was."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else -1.0


def _silent(*_: Any) -> None:
    """faster-coco-eval prints its progress through this."""
