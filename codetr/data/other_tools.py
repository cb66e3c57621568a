"""Recognising annotation tools' own formats, to say what to export instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_CVAT = "export it as COCO 1.0, Pascal VOC 1.1 or Ultralytics YOLO"
_ROBOFLOW = "download it from Roboflow as COCO, YOLOv8 or Pascal VOC"
_ADVICE = {
    "Label Studio": "this is Label Studio's own format: export it as COCO, YOLO or Pascal VOC",
    "VIA": "this is VIA's own format: export it by Annotation > Export Annotations (COCO format)",
    "CVAT": f"this is CVAT's own format: {_CVAT}",
    "Datumaro": f"this is Datumaro's format, an export of CVAT: {_CVAT}",
    "FiftyOne": "this is FiftyOne's own format: export it with dataset_type="
    "fiftyone.types.COCODetectionDataset",
    "CreateML": f"this is CreateML's format: {_ROBOFLOW}",
    "CSV": f"this is a table for TensorFlow: {_ROBOFLOW}",
    "Supervisely": "this is Supervisely's own format: export it as COCO",
    "results": "these are detections, results in COCO's format: give the file of the annotations",
}
"""Advice for messages, by format."""


def advice_for_json(content: Any) -> str | None:
    """Advice on what to export instead of a JSON value; None if it is not a tool's own format."""
    return _ADVICE.get(_tool_of(content) or "")


def advice_for_text(text: bytes) -> str | None:
    """The same for the content of an XML or CSV file."""
    start = text[:4096]
    if b"<annotations" in start and (b"<meta>" in start or b"<version>" in start):
        return _ADVICE["CVAT"]
    if start.startswith(b"filename,width,height,class,xmin"):
        return _ADVICE["CSV"]
    return None


def _tool_of(content: Any) -> str | None:
    if isinstance(content, list):
        return _of_entries([entry for entry in content[:5] if isinstance(entry, Mapping)])
    if not isinstance(content, Mapping):
        return None
    if {"_via_img_metadata", "_via_settings"} & content.keys():
        return "VIA"
    if {"project", "config", "attribute", "view", "metadata"} <= content.keys():
        return "VIA"
    if isinstance(content.get("items"), list) and isinstance(content.get("categories"), Mapping):
        return "Datumaro"
    if isinstance(content.get("samples"), list):
        return "FiftyOne"
    if "classes" in content and isinstance(content.get("labels"), Mapping):  # null without a list
        return "FiftyOne"
    if isinstance(content.get("objects"), list) and "size" in content:
        return "Supervisely"
    values = [value for value in list(content.values())[:5] if isinstance(value, Mapping)]
    if values and all({"filename", "regions"} <= value.keys() for value in values):
        return "VIA"
    return "Label Studio" if _is_task(content) else None


def _of_entries(entries: Iterable[Mapping[str, Any]]) -> str | None:
    for entry in entries:
        if _is_task(entry):
            return "Label Studio"
        inner = entry.get("annotations")
        first = inner[0] if isinstance(inner, list) and inner else None
        if "image" in entry and isinstance(first, Mapping) and "coordinates" in first:
            return "CreateML"
        if {"image_id", "bbox", "score"} <= entry.keys():
            return "results"
    return None


def _is_task(entry: Mapping[str, Any]) -> bool:
    """Whether ``entry`` is a task of Label Studio's JSON or JSON-MIN."""
    if isinstance(entry.get("data"), Mapping):
        return bool({"annotations", "completions", "predictions"} & entry.keys())
    return {"annotator", "annotation_id"} <= entry.keys()
