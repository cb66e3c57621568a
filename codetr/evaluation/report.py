"""Metrics and predictions as tables and files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from torch import Tensor

from codetr.classes import ClassList
from codetr.evaluation.detection_metric import EncodedMasks
from codetr.evaluation.metrics import PER_CLASS, CocoMetrics
from codetr.evaluation.precision_recall import Curves
from codetr.writing import write_text

Line = tuple[str, str, int]
"""IoU range, subset (object size or class frequency) and number of detections of a metric."""

MOST_CLASSES = 80
"""Rows of the printed table; the files list all classes."""


def coco_lines(max_detections: Sequence[int]) -> dict[str, Line]:
    """The metrics by name in the order of COCO's table; with (1, 10, 100), its twelve."""
    most, areas = max_detections[-1], {"s": "area= small", "m": "area=medium", "l": "area= large"}
    whole, every = "0.50:0.95", "area=   all"
    return {
        "AP": (whole, every, most),
        "AP50": ("0.50", every, most),
        "AP75": ("0.75", every, most),
        **{f"AP{size}": (whole, area, most) for size, area in areas.items()},
        **{f"AR{number}": (whole, every, number) for number in max_detections},
        **{f"AR{size}": (whole, area, most) for size, area in areas.items()},
    }


def summary_text(summary: Mapping[str, float], lines: Mapping[str, Line]) -> str:
    """The table as pycocotools and the LVIS API print it."""
    texts = []
    for name, (iou, subset, detections) in lines.items():
        title = "Average Precision" if name.startswith("AP") else "Average Recall"
        texts.append(
            f" {title:<18} ({name[:2]}) @[ IoU={iou:<9} | {subset} "
            f"| maxDets={detections:>3} ] = {summary[name]:0.3f}"
        )
    return "\n".join(texts)


def class_table(
    metrics: CocoMetrics,
    classes: ClassList,
    num_boxes: Iterable[int],
    curves: Curves | None = None,
) -> Table:
    """The metrics of every class and its number of ground-truth boxes (without crowd regions); with
    ``curves``, also its best F1 and the score threshold where that is reached.

    Where more than ``MOST_CLASSES`` classes have boxes, only those with the highest and lowest AP.
    """
    labels = range(len(classes))
    rows = list(zip(class_names(classes), num_boxes, metrics.per_class, labels, strict=True))
    title = "per class"
    if len(rows) > MOST_CLASSES:
        with_boxes = [row for row in rows if row[2]["AP"] >= 0]
        rows = sorted(with_boxes, key=lambda row: -row[2]["AP"])
        title = f"per class: all {len(rows)} that have boxes"
    if len(rows) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        title = f"per class: the {half} best and the {half} worst of {len(rows)} that have boxes"
        rows = [*rows[:half], *rows[-half:]]
    table = Table("class", title=title)
    for heading in ("boxes", *PER_CLASS, *(() if curves is None else ("F1", "threshold"))):
        table.add_column(heading, justify="right")
    measured = set() if curves is None else set(curves.measured.tolist())
    for name, boxes, numbers, label in rows:
        values = [numbers[key] for key in PER_CLASS]
        if curves is not None and label in measured:
            best = curves.best_of(label)
            values += [best.f1, best.threshold]
        texts = ("-" if value < 0 else f"{value:0.3f}" for value in values)
        table.add_row(escape(name), str(boxes), *texts)
    return table


def class_names(classes: ClassList) -> tuple[str, ...]:
    """The class names, unique: a name that several classes share is followed by the category id."""
    return tuple(
        name if classes.names.count(name) == 1 else f"{name} ({category})"
        for name, category in zip(classes.names, classes.category_ids, strict=True)
    )


def prediction_records(
    detections: Mapping[int, Tensor],
    classes: ClassList,
    masks: Mapping[int, EncodedMasks] | None = None,
    written_ids: Mapping[int, int | str] | None = None,
) -> list[dict[str, Any]]:
    """COCO result records of ``detections``: by image id, rows (n, 6) of label, score and x, y, w,
    h in pixels. ``masks``, in the same order, add ``segmentation`` and ``mask_score``.
    ``written_ids``: the image ids to write, where they differ from the keys.
    """
    written_ids = written_ids or {}
    records = [
        {
            "image_id": written_ids.get(image_id, image_id),
            "category_id": classes.category_ids[int(label)],
            "bbox": box,
            "score": score,
        }
        for image_id, rows in detections.items()
        for label, score, *box in rows.tolist()
    ]
    if masks:
        others = mask_records(detections, masks, classes, written_ids)
        records = [
            one | {"segmentation": other["segmentation"], "mask_score": other["score"]}
            for one, other in zip(records, others, strict=True)
        ]
    return records


def mask_records(
    detections: Mapping[int, Tensor],
    masks: Mapping[int, EncodedMasks],
    classes: ClassList,
    written_ids: Mapping[int, int | str] | None = None,
) -> list[dict[str, Any]]:
    """COCO result records of the ``masks`` of ``detections``; see ``prediction_records``."""
    written_ids = written_ids or {}
    return [
        {
            "image_id": written_ids.get(image_id, image_id),
            "category_id": classes.category_ids[label],
            "segmentation": {"size": list(own.size), "counts": counts.decode("ascii")},
            "score": score,
        }
        for image_id, own in masks.items()
        for label, counts, score in zip(
            detections[image_id][:, 0].int().tolist(), own.counts, own.scores.tolist(), strict=True
        )
    ]


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON, a list on one line; a missing folder is created."""
    write_text(path, json.dumps(content, indent=None if isinstance(content, list) else 2) + "\n")
