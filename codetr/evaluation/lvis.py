"""LVIS evaluation: AP over all, rare, common and frequent classes, under federated annotation.

Gupta et al., "LVIS", CVPR 2019. In an image, only classes that it is annotated for are measured:
those with a box in it, and those that were checked to be absent (``neg_category_ids``). Of
classes in ``not_exhaustive_category_ids`` not every object is annotated: a detection without a
partner is no mistake there. Matching is faster-coco-eval's in its LVIS mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from torch import Tensor

from codetr.classes import ClassList
from codetr.errors import UserError
from codetr.evaluation.coco import CocoEvaluator
from codetr.evaluation.ground_truth import ImageTruth, read_json
from codetr.evaluation.metrics import CocoMetrics
from codetr.evaluation.report import Line

FREQUENCIES = {"r": "APr", "c": "APc", "f": "APf"}
"""Rare (in 1 to 10 training images), common (11 to 100) and frequent classes."""
_SIZES = {"small": "s", "medium": "m", "large": "l"}  # faster-coco-eval's area ranges, after "all"
_IOU50, _IOU75 = 0, 5  # positions among the ten thresholds 0.5, 0.55 ... 0.95


@dataclass(frozen=True, kw_only=True)
class LvisMeasure:
    """Callable that measures detections as LVIS does, class by class.

    ``frequencies`` (K) "r", "c" or "f" by class; ``negative`` and ``not_exhaustive`` class indices
    by image id. The best ``max_detections`` of each image count, whatever their class.
    """

    frequencies: tuple[str, ...]
    negative: Mapping[int, frozenset[int]]
    not_exhaustive: Mapping[int, frozenset[int]]
    max_detections: int = 300

    def __post_init__(self) -> None:
        if self.max_detections < 1:
            raise UserError(f"evaluator.max_detections is {self.max_detections}: choose 1 or more")

    @property
    def lines(self) -> dict[str, Line]:
        """The numbers, in the order of the LVIS table."""
        count = self.max_detections
        subsets = {"APr": "classes=rare", "APc": "classes=common", "APf": "classes=frequent"}
        areas = {suffix: f"area={size:>6}" for size, suffix in _SIZES.items()}
        return {
            "AP": ("0.50:0.95", "area=   all", count),
            "AP50": ("0.50", "area=   all", count),
            "AP75": ("0.75", "area=   all", count),
            **{f"AP{suffix}": ("0.50:0.95", area, count) for suffix, area in areas.items()},
            **{name: ("0.50:0.95", subset, count) for name, subset in subsets.items()},
            "AR": ("0.50:0.95", "area=   all", count),
            **{f"AR{suffix}": ("0.50:0.95", area, count) for suffix, area in areas.items()},
        }

    def __call__(
        self, detections: Mapping[int, Tensor], truth: Mapping[int, ImageTruth], num_classes: int
    ) -> CocoMetrics:
        """See ``codetr.evaluation.coco.Measure``."""
        found = _Rows.of_detections(detections, self.max_detections)
        wanted = _Rows.of_truth({image: truth[image] for image in detections})
        images: list[set[int]] = [set() for _ in range(num_classes)]
        for image in detections:
            for label in {*truth[image].labels.tolist(), *self.negative[image]}:
                images[label].add(image)
        # One class at a time: all classes of all images at once would be 24 million pairs.
        curves = [
            self._class_curves(label, images[label], wanted.of_class(label), found.of_class(label))
            for label in range(num_classes)
        ]
        precision = np.stack([curve for curve, _ in curves])  # (K, 10 IoUs, 101 recalls, 4 areas)
        recall = np.stack([curve for _, curve in curves])  # (K, 10, 4)
        return CocoMetrics(
            summary=self._summary(precision, recall),
            per_class=tuple(_mean(p) for p in precision[..., 0]),
        )

    def _class_curves(
        self, label: int, images: set[int], wanted: _Rows, found: _Rows
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Precision (10, 101, 4) and recall (10, 4) of one class; -1 where it has no box."""
        if not len(wanted.values):
            return np.full((10, 101, 4), -1.0), np.full((10, 4), -1.0)
        category = {"id": label + 1, "name": str(label), "frequency": self.frequencies[label]}
        frame = {
            "categories": [category],
            "images": [
                {
                    "id": image,
                    "neg_category_ids": [label + 1] if label in self.negative[image] else [],
                    "not_exhaustive_category_ids": [label + 1]
                    if label in self.not_exhaustive[image]
                    else [],
                }
                for image in sorted(images)
            ],
        }
        evaluation = COCOeval_faster(
            COCO({**frame, "annotations": wanted.annotations()}),
            COCO({**frame, "annotations": found.within(images).annotations()}),
            "bbox",
            print_function=_silent,
            lvis_style=True,
        )
        evaluation.params.maxDets = [self.max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation.eval["precision"][:, :, 0, :, 0], evaluation.eval["recall"][:, 0, :, 0]

    def _summary(
        self, precision: NDArray[np.float64], recall: NDArray[np.float64]
    ) -> dict[str, float]:
        groups = np.array(self.frequencies)
        everywhere = precision[..., 0]
        numbers = {
            "AP": _mean(everywhere),
            "AP50": _mean(everywhere[:, _IOU50]),
            "AP75": _mean(everywhere[:, _IOU75]),
            "AR": _mean(recall[..., 0]),
        }
        for area, suffix in enumerate(_SIZES.values(), start=1):
            numbers[f"AP{suffix}"] = _mean(precision[..., area])
            numbers[f"AR{suffix}"] = _mean(recall[..., area])
        for frequency, name in FREQUENCIES.items():
            numbers[name] = _mean(everywhere[groups == frequency])
        return {name: numbers[name] for name in self.lines}


def lvis_evaluator(
    annotation_file: str | Path, classes: ClassList, max_detections: int = 300
) -> CocoEvaluator:
    """An evaluator with the LVIS numbers; the rest is ``CocoEvaluator``.

    The official LVIS API counts 300 detections per image; the official Co-DETR recipes that start
    from Objects365, and ViT-L, count 1000.
    """
    measure = read_lvis_measure(Path(annotation_file), classes, max_detections)
    return CocoEvaluator(annotation_file, classes, measure)


def read_lvis_measure(path: Path, classes: ClassList, max_detections: int = 300) -> LvisMeasure:
    """The measure that an LVIS v1 annotation file defines.

    Raises UserError where an image lacks the two lists, or a class its frequency.
    """
    content, index = read_json(path), classes.index()
    lists: dict[str, dict[int, frozenset[int]]] = {}
    try:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            lists[key] = {
                image["id"]: frozenset(index[c] for c in image[key]) for image in content["images"]
            }
        group = {category["id"]: category["frequency"] for category in content["categories"]}
        frequencies = tuple(group[category] for category in classes.category_ids)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is not an LVIS annotation file ({error!r}): images need 'neg_category_ids' "
            "and 'not_exhaustive_category_ids' of known categories, categories need 'frequency'; "
            "for other data choose evaluation=coco"
        ) from error
    unknown = sorted({str(f) for f in frequencies} - FREQUENCIES.keys())
    if unknown:
        raise UserError(f"{path}: has class frequency {unknown[0]!r}: it must be r, c or f")
    return LvisMeasure(
        frequencies=frequencies,
        negative=lists["neg_category_ids"],
        not_exhaustive=lists["not_exhaustive_category_ids"],
        max_detections=max_detections,
    )


@dataclass(frozen=True)
class _Rows:
    """Boxes of many images, sorted by label: ``images`` (n,), ``labels`` (n,), ``values`` (n, 6):
    x, y, w, h, area, score.
    """

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def of_detections(cls, detections: Mapping[int, Tensor], limit: int) -> _Rows:
        """The ``limit`` best of each image; rows (n, 6) label, score, x, y, w, h by image id."""
        parts, images = [], []
        for image in sorted(detections):
            rows = detections[image]
            best = rows[rows[:, 1].argsort(descending=True, stable=True)[:limit]]
            parts.append(best)
            images.append(np.full(len(best), image))
        table = torch.cat([torch.zeros(0, 6, dtype=torch.float64), *parts]).numpy()
        boxes = table[:, 2:]
        area = boxes[:, 2] * boxes[:, 3]
        return cls._sorted(images, table[:, 0], np.column_stack([boxes, area, table[:, 1]]))

    @classmethod
    def of_truth(cls, truth: Mapping[int, ImageTruth]) -> _Rows:
        """All boxes, with score 1."""
        ordered = [truth[image] for image in sorted(truth)]
        images = [np.full(len(truth[image].labels), image) for image in sorted(truth)]
        labels = np.concatenate([t.labels.numpy() for t in ordered])
        boxes = np.concatenate([t.boxes_xywh_px.numpy() for t in ordered])
        area = np.concatenate([t.area.numpy() for t in ordered])
        return cls._sorted(images, labels, np.column_stack([boxes, area, np.ones(len(labels))]))

    @classmethod
    def _sorted(
        cls,
        images: Sequence[NDArray[np.int64]],
        labels: NDArray[Any],
        values: NDArray[np.float64],
    ) -> _Rows:
        whole = labels.astype(np.int64)
        order = whole.argsort(kind="stable")
        return cls(np.concatenate(images).astype(np.int64)[order], whole[order], values[order])

    def of_class(self, label: int) -> _Rows:
        low, high = np.searchsorted(self.labels, [label, label + 1])
        return _Rows(self.images[low:high], self.labels[low:high], self.values[low:high])

    def within(self, images: set[int]) -> _Rows:
        inside = np.isin(self.images, list(images))
        return _Rows(self.images[inside], self.labels[inside], self.values[inside])

    def annotations(self) -> list[dict[str, Any]]:
        """As COCO annotations."""
        return [
            {
                "id": i + 1,
                "image_id": image,
                "category_id": label + 1,
                "bbox": [x, y, w, h],
                "area": area,
                "score": score,
                "iscrowd": 0,
            }
            for i, (image, label, (x, y, w, h, area, score)) in enumerate(
                zip(self.images.tolist(), self.labels.tolist(), self.values.tolist(), strict=True)
            )
        ]


def _mean(values: NDArray[np.float64]) -> float:
    """Over what was measured; -1 where nothing was."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else -1.0


def _silent(*_: Any) -> None:
    """faster-coco-eval prints its progress through this."""
