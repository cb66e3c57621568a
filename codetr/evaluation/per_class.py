"""Precision and recall of a single class, by faster-coco-eval.

All metrics of COCO and LVIS are means over classes, so each class can be evaluated alone. This
saves memory: the library needs a dict per box, and all of LVIS at once would be 24 million pairs of
image and class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as rle
from numpy.typing import NDArray
from torch import Tensor

from codetr.evaluation.detection_metric import EncodedMasks
from codetr.evaluation.encoding import run_lengths
from codetr.evaluation.ground_truth import ImageTruth

ClassCurves = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Precision (10 IoU thresholds, 101 recalls, 4 areas, M) and recall (10, 4, M) for M limits on the
detections per image; -1 where there is no ground truth.
"""


@dataclass(frozen=True)
class Rows:
    """Boxes of many images, sorted by label, then image id, then in the given order.

    ``images`` (n,): image ids; ``labels`` (n,); ``values`` (n, 7): x, y, w, h in px, area in px^2,
    score, 1 for a crowd region; ``masks`` (n,): run lengths, where masks are evaluated instead.
    """

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    values: NDArray[np.float64]
    masks: NDArray[np.object_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of_detections(cls, detections: Mapping[int, Tensor], limit: int | None = None) -> Rows:
        """From rows (n, 6) of label, score and x, y, w, h in pixels by image id: the ``limit`` best
        of each image, or all.
        """
        parts = [detections[image] for image in sorted(detections)]
        parts = [part[_best(part[:, 1], limit)] for part in parts]
        images = np.repeat(sorted(detections), [len(part) for part in parts])
        table = torch.cat([torch.zeros(0, 6, dtype=torch.float64), *parts]).numpy()
        boxes, scores = table[:, 2:], table[:, 1]
        area = boxes[:, 2] * boxes[:, 3]
        crowd = np.zeros(len(table))
        return cls._sorted(images, table[:, 0], np.column_stack([boxes, area, scores, crowd]))

    @classmethod
    def of_masks(
        cls,
        detections: Mapping[int, Tensor],
        masks: Mapping[int, EncodedMasks],
        limit: int | None = None,
    ) -> Rows:
        """As ``of_detections``, with the masks and their scores and areas."""
        tables, encoded = [], []
        for image in sorted(detections):
            own = masks.get(image)
            scores = torch.zeros(0, dtype=torch.float64) if own is None else own.scores
            kept = _best(scores, limit)
            table = detections[image][kept].clone()
            table[:, 1] = scores[kept]
            lengths = [] if own is None else run_lengths(own)
            tables.append(table)
            encoded += [lengths[i] for i in kept.tolist()]
        images = np.repeat(sorted(detections), [len(table) for table in tables])
        rows = torch.cat([torch.zeros(0, 6, dtype=torch.float64), *tables]).numpy()
        area = rle.area(encoded).astype(np.float64) if encoded else np.zeros(0)
        values = np.column_stack([rows[:, 2:], area, rows[:, 1], np.zeros(len(rows))])
        return cls._sorted(images, rows[:, 0], values, _objects(encoded))

    @classmethod
    def of_truth(cls, truth: Mapping[int, ImageTruth], masks: bool = False) -> Rows:
        """All annotated boxes, or ``masks``, with score 1."""
        ordered = [truth[image] for image in sorted(truth)]
        labels = torch.cat([t.labels for t in ordered]).numpy()
        images = np.repeat(sorted(truth), [len(t.labels) for t in ordered])
        boxes, area, crowd = (
            torch.cat([getattr(t, name) for t in ordered]).numpy()
            for name in ("boxes_xywh_px", "area", "crowd")
        )
        values = np.column_stack([boxes, area, np.ones(len(labels)), crowd])
        encoded = [one for t in ordered for one in t.masks or ()] if masks else None
        return cls._sorted(images, labels, values, None if encoded is None else _objects(encoded))

    @classmethod
    def _sorted(
        cls,
        images: NDArray[Any],
        labels: NDArray[Any],
        values: NDArray[np.float64],
        masks: NDArray[np.object_] | None = None,
    ) -> Rows:
        whole = labels.astype(np.int64)
        rows = cls(images.astype(np.int64), whole, values, masks)
        return rows._take(whole.argsort(kind="stable"))

    def _take(self, index: Any) -> Rows:
        masks = None if self.masks is None else self.masks[index]
        return Rows(self.images[index], self.labels[index], self.values[index], masks)

    def of_class(self, label: int) -> Rows:
        """The rows of one class."""
        low, high = np.searchsorted(self.labels, [label, label + 1])
        return self._take(slice(low, high))

    def within(self, images: set[int]) -> Rows:
        """The rows of some images."""
        return self._take(np.isin(self.images, list(images)))

    def sizes(self) -> dict[int, dict[str, int]]:
        """Height and width in pixels of the images that have masks."""
        if self.masks is None:
            return {}
        return {
            image: dict(zip(("height", "width"), mask["size"], strict=True))
            for image, mask in zip(self.images.tolist(), self.masks, strict=True)
        }

    def annotations(self) -> list[dict[str, Any]]:
        """COCO annotations of category 1."""
        masks: Sequence[dict[str, Any]] = [{}] * len(self)
        if self.masks is not None:
            masks = [{"segmentation": dict(mask)} for mask in self.masks]
        return [
            {
                **mask,
                "id": number,
                "image_id": image,
                "category_id": 1,
                "bbox": box,
                "area": area,
                "score": score,
                "iscrowd": int(crowd),
            }
            for number, (image, (*box, area, score, crowd), mask) in enumerate(
                zip(self.images.tolist(), self.values.tolist(), masks, strict=True), start=1
            )
        ]


def class_curves(
    frame: Mapping[str, Any],
    wanted: Rows,
    found: Rows,
    max_detections: Sequence[int],
    lvis: bool = False,
) -> ClassCurves:
    """Precision and recall of one class. ``frame`` holds the ``images`` and ``categories`` of a
    COCO data set with a single category, of id 1. With ``lvis``, lists of the images tell in which
    of them the class is evaluated.
    """
    sizes = wanted.sizes() | found.sizes()
    frame = {**frame, "images": [{**one, **sizes.get(one["id"], {})} for one in frame["images"]]}
    evaluation = COCOeval_faster(
        COCO({**frame, "annotations": wanted.annotations()}),
        COCO({**frame, "annotations": found.annotations()}),
        "bbox" if found.masks is None else "segm",
        print_function=_silent,
        lvis_style=lvis,
    )
    evaluation.params.maxDets = list(max_detections)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0], evaluation.eval["recall"][:, 0]


def _best(scores: Tensor, limit: int | None) -> Tensor:
    """Indices of the ``limit`` highest scores, best first; without a limit of all, unsorted."""
    if limit is None:
        return torch.arange(len(scores))
    return scores.argsort(descending=True, stable=True)[:limit]


def _objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """An object array (n,), even where the values are sequences or mappings."""
    table = np.empty(len(values), dtype=object)
    table[:] = values
    return table


def mean(values: NDArray[np.float64]) -> float:
    """The mean of the measured values (those above -1); -1 where there is none."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else -1.0


def _silent(*_: Any) -> None:
    """In place of faster-coco-eval's printing of its progress."""
