"""LVIS evaluation: AP over all, rare, common and frequent classes, under federated annotation.

Gupta et al., "LVIS", CVPR 2019. An image is evaluated only for the classes it was annotated for:
those with a box in it and those verified to be absent (``neg_category_ids``). For the classes in
``not_exhaustive_category_ids`` some objects may lack an annotation, so an unmatched detection is
ignored. Matching is done by faster-coco-eval in its LVIS mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from codetr.classes import ClassList
from codetr.data.json_columns import as_identifier, as_integer
from codetr.errors import UserError
from codetr.evaluation.coco import CocoEvaluator
from codetr.evaluation.detection_metric import EncodedMasks
from codetr.evaluation.ground_truth import ImageTruth, read_json
from codetr.evaluation.limits import Limit
from codetr.evaluation.metrics import IOU50, IOU75, CocoMetrics, class_numbers
from codetr.evaluation.per_class import Rows, class_curves, mean
from codetr.evaluation.report import Line

FREQUENCIES = {"r": "APr", "c": "APc", "f": "APf"}
"""Rare (in 1 to 10 training images), common (11 to 100) and frequent classes."""
_SIZES = {"small": "s", "medium": "m", "large": "l"}  # faster-coco-eval's area ranges, after "all"


@dataclass(frozen=True, kw_only=True)
class LvisMeasure:
    """The LVIS metrics, computed class by class.

    ``frequencies`` (K): "r", "c" or "f" for each class; ``negative`` and ``not_exhaustive``: class
    indices by image id. The best ``max_detections`` of each image count, regardless of class.
    Raises UserError unless ``max_detections`` is a whole number, 1 or more.
    """

    frequencies: tuple[str, ...]
    negative: Mapping[int, frozenset[int]]
    not_exhaustive: Mapping[int, frozenset[int]]
    max_detections: int = 300
    exhaustive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.max_detections, int) or self.max_detections < 1:
            raise UserError(
                f"evaluation.max_detections={self.max_detections}: LVIS counts one number of "
                "detections per image, whatever their class: give it, 1 or more"
            )

    @property
    def lines(self) -> dict[str, Line]:
        """The metrics by name in the order of the LVIS table."""
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

    @property
    def limit(self) -> Limit:
        """See ``codetr.evaluation.coco.Measure``."""
        key = "evaluation.max_detections"
        return Limit(key=key, most=self.max_detections, remedy="raise it")

    def __call__(
        self,
        detections: Mapping[int, Tensor],
        truth: Mapping[int, ImageTruth],
        num_classes: int,
        masks: Mapping[int, EncodedMasks] | None = None,
    ) -> CocoMetrics:
        """See ``codetr.evaluation.coco.Measure``."""
        limit = self.max_detections
        found = Rows.of_detections(detections, limit)
        if masks is not None:
            found = Rows.of_masks(detections, masks, limit)
        wanted = Rows.of_truth({image: truth[image] for image in detections}, masks is not None)
        images: list[set[int]] = [set() for _ in range(num_classes)]
        for image in detections:
            for label in {*truth[image].labels.tolist(), *self.negative[image]}:
                images[label].add(image)
        curves = [
            self._class_curves(label, images[label], wanted.of_class(label), found.of_class(label))
            for label in range(num_classes)
        ]
        precision = np.stack([curve for curve, _ in curves])  # (K, 10 IoUs, 101 recalls, 4 areas)
        recall = np.stack([curve for _, curve in curves])  # (K, 10, 4)
        return CocoMetrics(
            summary=self._summary(precision, recall),
            per_class=class_numbers(precision[..., 0], recall[..., 0]),
        )

    def _class_curves(
        self, label: int, images: set[int], wanted: Rows, found: Rows
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Precision (10, 101, 4) and recall (10, 4) of one class; -1 where it has no box."""
        if not len(wanted):
            return np.full((10, 101, 4), -1.0), np.full((10, 4), -1.0)
        frame = {
            "categories": [{"id": 1, "name": str(label), "frequency": self.frequencies[label]}],
            "images": [
                {
                    "id": image,
                    "neg_category_ids": [1] if label in self.negative[image] else [],
                    "not_exhaustive_category_ids": [1]
                    if label in self.not_exhaustive[image]
                    else [],
                }
                for image in sorted(images)
            ],
        }
        precision, recall = class_curves(
            frame, wanted, found.within(images), (self.max_detections,), lvis=True
        )
        return precision[..., 0], recall[..., 0]

    def _summary(
        self, precision: NDArray[np.float64], recall: NDArray[np.float64]
    ) -> dict[str, float]:
        groups = np.array(self.frequencies)
        all_areas = precision[..., 0]
        numbers = {
            "AP": mean(all_areas),
            "AP50": mean(all_areas[:, IOU50]),
            "AP75": mean(all_areas[:, IOU75]),
            "AR": mean(recall[..., 0]),
        }
        for area, suffix in enumerate(_SIZES.values(), start=1):
            numbers[f"AP{suffix}"] = mean(precision[..., area])
            numbers[f"AR{suffix}"] = mean(recall[..., area])
        for frequency, name in FREQUENCIES.items():
            numbers[name] = mean(all_areas[groups == frequency])
        return {name: numbers[name] for name in self.lines}


def lvis_evaluator(
    annotation_file: str | Path, classes: ClassList, max_detections: int = 300, masks: bool = False
) -> CocoEvaluator:
    """A ``CocoEvaluator`` with the LVIS metrics.

    The official LVIS API counts 300 detections per image; the official Co-DETR recipes for ViT-L
    and those that start from Objects365 count 1000.
    """
    measure = read_lvis_measure(Path(annotation_file), classes, max_detections)
    return CocoEvaluator(annotation_file, classes, measure, masks=masks)


def read_lvis_measure(path: Path, classes: ClassList, max_detections: int = 300) -> LvisMeasure:
    """The LVIS metrics for an LVIS v1 annotation file.

    Raises UserError where an image lacks one of the two class lists or a class its frequency.
    """
    content, index = read_json(path), classes.index()
    lists: dict[str, dict[int, frozenset[int]]] = {}
    try:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            lists[key] = {
                _number(image["id"], as_identifier): frozenset(
                    index[_number(c)] for c in image[key]
                )
                for image in content["images"]
            }
        group = {_number(c["id"]): c["frequency"] for c in content["categories"]}
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


def _number(value: object, read: Callable[[Any], int | None] = as_integer) -> int:
    number = read(value)
    if number is None:
        raise TypeError(f"id {value!r}")
    return number
