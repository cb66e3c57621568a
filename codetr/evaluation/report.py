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

Line = tuple[str, str, int]
"""IoU range, subset (of areas or classes) and number of detections behind a number."""

MOST_CLASSES = 80
"""That are printed; the files have all."""


def coco_lines(max_detections: Sequence[int]) -> dict[str, Line]:
    """The numbers, in the order of the COCO table: with 1, 10 and 100 its twelve."""
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
    """The lines that pycocotools prints, or the LVIS API."""
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
    """The numbers of every class and its number of ground-truth boxes (crowd regions not counted);
    with ``curves``, its best F1 and the score threshold of that.

    Of more than ``MOST_CLASSES`` classes, those with the highest and the lowest AP.
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
    """The names; a name that several classes share is told apart by its category id."""
    return tuple(
        name if classes.names.count(name) == 1 else f"{name} ({category})"
        for name, category in zip(classes.names, classes.category_ids, strict=True)
    )


def prediction_records(
    detections: Mapping[int, Tensor],
    classes: ClassList,
    masks: Mapping[int, EncodedMasks] | None = None,
    names: Mapping[int, int | str] | None = None,
) -> list[dict[str, Any]]:
    """COCO result records of rows (n, 6) label, score, x, y, w, h by image id; with ``masks``, by
    image id in the same order, ``segmentation`` and ``mask_score`` too. ``names`` are the ids to
    write where they are others.
    """
    names = names or {}
    records = [
        {
            "image_id": names.get(image_id, image_id),
            "category_id": classes.category_ids[int(label)],
            "bbox": box,
            "score": score,
        }
        for image_id, rows in detections.items()
        for label, score, *box in rows.tolist()
    ]
    if masks:
        others = mask_records(detections, masks, classes, names)
        records = [
            one | {"segmentation": other["segmentation"], "mask_score": other["score"]}
            for one, other in zip(records, others, strict=True)
        ]
    return records


def mask_records(
    detections: Mapping[int, Tensor],
    masks: Mapping[int, EncodedMasks],
    classes: ClassList,
    names: Mapping[int, int | str] | None = None,
) -> list[dict[str, Any]]:
    """COCO result records of the masks of ``detections``, by image id and in the same order;
    ``names`` as in ``prediction_records``.
    """
    names = names or {}
    return [
        {
            "image_id": names.get(image_id, image_id),
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
    """Write ``content``; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=None if isinstance(content, list) else 2) + "\n")
