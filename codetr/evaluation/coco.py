"""COCO evaluation of a split, in one process or several."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from rich.table import Table
from torch import Tensor

from codetr.classes import ClassList
from codetr.distributed import is_first_rank
from codetr.errors import UserError
from codetr.evaluation.detection_metric import DetectionMetric, EncodedMasks
from codetr.evaluation.encoding import encode
from codetr.evaluation.ground_truth import ImageTruth, read_ground_truth
from codetr.evaluation.limits import Limit
from codetr.evaluation.metrics import MAX_DETECTIONS, CocoMetrics, coco_metrics
from codetr.evaluation.precision_recall import Curves
from codetr.evaluation.report import (
    Line,
    class_names,
    class_table,
    coco_lines,
    mask_records,
    prediction_records,
    summary_text,
    write_json,
)
from codetr.structures import Detections, ImageInfo

log = logging.getLogger(__name__)

MASK = "mask_"
"""Prefix of the names of mask metrics."""


class Measure(Protocol):
    """What computes the metrics from detections and ground truth."""

    @property
    def lines(self) -> Mapping[str, Line]:
        """The metrics by name, in the order of the table."""
        ...

    @property
    def limit(self) -> Limit:
        """The largest number of objects of an image that can count as found."""
        ...

    @property
    def exhaustive(self) -> bool:
        """Whether every object of every class is annotated in every image."""
        ...

    def __call__(
        self,
        detections: Mapping[int, Tensor],
        truth: Mapping[int, ImageTruth],
        num_classes: int,
        masks: Mapping[int, EncodedMasks] | None = None,
    ) -> CocoMetrics:
        """Evaluate ``detections``: by image id, rows (n, 6) float64 of label, score and x, y, w, h
        in pixels. With ``masks`` (in the same order), evaluate these instead of the boxes.
        ``truth`` must hold these images.
        """
        ...


@dataclass(frozen=True)
class CocoMeasure:
    """The COCO metrics. ``max_detections``: how many detections per image and class count, best
    first; there is one AR for each number, and AP uses the last. Raises UserError unless the
    numbers are positive and increasing.
    """

    exhaustive: ClassVar[bool] = True
    max_detections: Sequence[int] = MAX_DETECTIONS

    def __post_init__(self) -> None:
        given = self.max_detections
        numbers = list(given) if isinstance(given, Sequence) else []
        if not numbers or min(numbers) < 1 or numbers != sorted(set(numbers)):
            raise UserError(
                f"evaluation.max_detections={given}: give numbers from small to large, such as "
                "[1,10,100]"
            )

    @property
    def lines(self) -> dict[str, Line]:
        """See ``Measure``."""
        return coco_lines(self.max_detections)

    @property
    def limit(self) -> Limit:
        """See ``Measure``."""
        most = self.max_detections[-1]
        more = ",".join(map(str, [*self.max_detections, 10 * most]))
        remedy = f"evaluation.max_detections=[{more}] counts more"
        return Limit(key="evaluation.max_detections", most=most, remedy=remedy, per_class=True)

    def __call__(
        self,
        detections: Mapping[int, Tensor],
        truth: Mapping[int, ImageTruth],
        num_classes: int,
        masks: Mapping[int, EncodedMasks] | None = None,
    ) -> CocoMetrics:
        """See ``Measure``."""
        return coco_metrics(detections, truth, num_classes, self.max_detections, masks)


class CocoEvaluator(DetectionMetric):
    """Collects detections and evaluates them against a COCO annotation file.

    Exactly the images given to ``update`` are evaluated, each once, even if several batches or
    ranks hold it (samplers repeat images to fill the last batch). ``measure`` computes the metrics;
    the default is ``CocoMeasure(max_detections)``, which equals pycocotools' ``COCOeval``, with -1
    where there is no ground truth. With ``masks``, the masks of the detections are evaluated too,
    under the same names with the prefix ``mask_``.
    Raises UserError where the annotation file cannot be used (see ``read_ground_truth``).
    """

    def __init__(
        self,
        annotation_file: str | Path,
        classes: ClassList,
        measure: Measure | None = None,
        max_detections: Sequence[int] = MAX_DETECTIONS,
        masks: bool = False,
    ) -> None:
        super().__init__()
        self.with_masks = masks
        self.annotation_file = Path(annotation_file)
        self.classes = classes
        self.measure = measure or CocoMeasure(max_detections)
        self.truth = read_ground_truth(self.annotation_file, classes, masks)

    def reset(self) -> None:
        """Forget all detections and results."""
        super().reset()
        self._detections: dict[int, Tensor] = {}
        self._encoded: dict[int, EncodedMasks] = {}
        self._metrics: CocoMetrics | None = None
        self._mask_metrics: CocoMetrics | None = None

    def update(self, detections: Sequence[Detections], infos: Sequence[ImageInfo]) -> None:
        """Add the detections of a batch. Raises UserError for an image that is not in the
        annotation file, a label that is not a class, and a box or score that is not finite.
        """
        for found, info in zip(detections, infos, strict=True):
            on_host = found.to("cpu")
            self._require_valid(on_host, info)
            masks = encode(on_host, info.original_size) if self.with_masks else None
            self.add(on_host, info, masks)

    def _require_valid(self, found: Detections, info: ImageInfo) -> None:
        if info.image_id not in self.truth:
            raise UserError(
                f"{self.annotation_file}: has no image {info.image_id}, which predictions are for: "
                "evaluate with the annotation file of the same split"
            )
        if len(found) and not found.labels.max() < len(self.classes):
            raise UserError(
                f"{self.annotation_file}: has {len(self.classes)} classes but class "
                f"{int(found.labels.max())} was predicted: set num_classes={len(self.classes)}"
            )
        if not (found.boxes_xyxy_px.isfinite().all() and found.scores.isfinite().all()):
            raise UserError(
                f"{self.annotation_file}: image {info.image_id} has a prediction that is not "
                "finite: check the checkpoint, or train with trainer.precision=32"
            )

    def compute(self) -> dict[str, float]:
        """The metrics by name (COCO: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm,
        ARl), the same on every rank. All ranks must call it. Raises UserError where no image was
        added.
        """
        self._detections = self.rows_by_image()
        if not self._detections:
            raise UserError(
                f"{self.annotation_file}: no image was evaluated: raise "
                "trainer.limit_val_batches or trainer.limit_test_batches"
            )
        if is_first_rank():
            seen, total = len(self._detections), len(self.truth)
            log.info("evaluating %d of %d images of %s", seen, total, self.annotation_file.name)
        self._metrics = self.measure(self._detections, self.truth, len(self.classes))
        if not self.with_masks:
            return dict(self._metrics.summary)
        self._encoded = self.masks_by_image()
        self._mask_metrics = self.measure(
            self._detections, self.truth, len(self.classes), self._encoded
        )
        return {**self._metrics.summary, **self._mask_summary()}

    def _mask_summary(self) -> dict[str, float]:
        summary = {} if self._mask_metrics is None else self._mask_metrics.summary
        return {f"{MASK}{name}": value for name, value in summary.items()}

    @property
    def metrics(self) -> CocoMetrics:
        """The result of the last ``compute``. Raises RuntimeError before it."""
        if self._metrics is None:
            raise RuntimeError("call compute() first")
        return self._metrics

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """AP, AP50 and AR of each class by name; -1 for classes without a box in the evaluated
        images.
        """
        names = class_names(self.classes)
        return {n: dict(own) for n, own in zip(names, self.metrics.per_class, strict=True)}

    def table(self) -> str:
        """The usual table as text; with masks, one table for boxes and one for masks."""
        boxes = summary_text(self.metrics.summary, self.measure.lines)
        if self._mask_metrics is None:
            return boxes
        masks = summary_text(self._mask_metrics.summary, self.measure.lines)
        return f"boxes\n{boxes}\nmasks\n{masks}"

    @property
    def detections(self) -> Mapping[int, Tensor]:
        """The detections of all ranks that the last ``compute`` evaluated: by image id, rows (n, 6)
        float64 of label, score and x, y, w, h in pixels.
        """
        return self._detections

    def class_table(self, curves: Curves | None = None) -> Table:
        """Metrics and number of boxes of each class; see ``report.class_table``."""
        truth = [self.truth[image_id] for image_id in self._detections]
        labels = torch.cat([image.labels[image.crowd == 0] for image in truth])
        num_boxes = labels.bincount(minlength=len(self.classes)).tolist()
        return class_table(self.metrics, self.classes, num_boxes, curves)

    def write_metrics(self, path: str | Path) -> None:
        """Write the metrics, ``per_class`` and the number of images as JSON, on rank 0 only."""
        content = {
            **self.metrics.summary,
            **self._mask_summary(),
            "per_class": self.per_class,
            "images": len(self._detections),
            "images_in_split": len(self.truth),
            "annotation_file": self.annotation_file.name,
        }
        if is_first_rank():
            write_json(Path(path), content)

    def write_predictions(self, path: str | Path) -> None:
        """Write COCO result records (ids as in the annotation file, boxes xywh in pixels of the
        original image), on rank 0 only. Raises RuntimeError before ``compute``, which gathers them.
        """
        if self._metrics is None:
            raise RuntimeError("call compute() first")
        if is_first_rank():
            written_ids = self._written_ids()
            records = prediction_records(self._detections, self.classes, written_ids=written_ids)
            write_json(Path(path), records)

    def write_mask_predictions(self, path: str | Path) -> None:
        """As ``write_predictions``, for masks: run lengths and mask scores. There is no box, so
        that COCO's tools compute the area from the mask.
        """
        if self._metrics is None:
            raise RuntimeError("call compute() first")
        if is_first_rank():
            records = mask_records(
                self._detections, self._encoded, self.classes, self._written_ids()
            )
            write_json(Path(path), records)

    def _written_ids(self) -> dict[int, int | str]:
        """The ids of those images whose id is a text in the annotation file."""
        return {number: one.name for number, one in self.truth.items() if one.name is not None}
