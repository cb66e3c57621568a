"""The model card of a folder for the Hugging Face Hub, filled from the run that trained the
model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from codetr.checkpoints.files import RunRecord
from codetr.checkpoints.zoo import ZOO, HubFile, find_entry
from codetr.errors import UserError
from codetr.run_folder import RunFolder

TEMPLATE = Path(__file__).with_name("model_card.md")
"""A Jinja template with placeholders for the author to fill in."""
TASK = "object-detection"
METRIC = "mean_average_precision"
"""The Hub's name for AP."""
BOXES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
"""The latter for small, medium and large objects, and for LVIS' rare, common and frequent
classes.
"""
SHOWN = (*BOXES, *(f"mask_{name}" for name in BOXES))
UNDEFINED = -1.0
"""Value of a metric without objects, in COCO's convention."""
OWN_DATA = "data of the author"
SYNTHETIC = "codetr.data.synthetic."


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """``metrics`` of a run's best validation by name, and its ``epoch`` (from 1)."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    epoch: int | None = None


def run_results(source: str) -> RunResults:
    """The results in the run folder of ``source``, a best.ckpt or model.safetensors. Empty for
    other files, and for files newer than the results, which belong to an unfinished run.
    """
    path = Path(source)
    folder = RunFolder(path.parent)
    try:
        if path.name not in (folder.best.name, folder.detector.name):
            return RunResults()
        if folder.metrics.stat().st_mtime < path.stat().st_mtime:
            return RunResults()
        content = json.loads(folder.metrics.read_bytes())
    except (OSError, ValueError, RecursionError):
        return RunResults()
    if not isinstance(content, dict) or type(content.get("epoch")) is not int:
        return RunResults()  # it belongs to an evaluation
    numbers = {name: content[name] for name in SHOWN if type(content.get(name)) in (int, float)}
    known = {k: float(v) for k, v in numbers.items() if math.isfinite(v) and v != UNDEFINED}
    return RunResults(metrics=known, epoch=content["epoch"])


def model_card(record: RunRecord, results: RunResults, details: Mapping[str, Any]) -> ModelCard:
    """The card of a model from its record and the results of its run. ``details`` replace ``name``,
    ``description``, ``data``, ``results`` and ``limits``, and add ``license``, ``datasets`` (names
    on the Hub) and ``base_model``.
    """
    given = dict(details)
    base = given.pop("base_model", None) or base_model(record.config)
    datasets = given.pop("datasets", None)
    datasets = [datasets] if isinstance(datasets, str) else list(datasets or ())
    name = given.setdefault("name", "A detector made with codetr")
    known = data_of(record.config)
    label = datasets[0] if datasets else known or OWN_DATA
    rows = [
        EvalResult(
            task_type=TASK,
            dataset_type=label,
            dataset_name=label,
            dataset_split="validation",
            metric_type=METRIC,
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for metric, value in results.metrics.items()
    ]
    front = ModelCardData(
        library_name="codetr",
        pipeline_tag=TASK,
        tags=[TASK, "co-detr"],
        license=given.pop("license", None),
        base_model=base,
        datasets=datasets or None,
        metrics=[METRIC] if rows else None,
        model_name=name if rows else None,
        eval_results=rows or None,
    )
    values = {
        "classes": record.classes.names,
        "preprocessing": dict(record.preprocessing),
        "data": ", ".join(datasets) if datasets else known,
        "results": results_text(results),
        "training": training_text(record.config, base, results.epoch),
        **given,
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    return ModelCard.from_template(front, template_str=text, **values)


def base_model(config: Mapping[str, Any]) -> str | None:
    """The Hub's name of the model that training started from: published weights of the zoo, or the
    pretrained backbone; None if it is unknown or not on the Hub.
    """
    start = config.get("checkpoint")
    if isinstance(start, str) and start:
        try:
            place = find_entry(start).place if start.startswith(ZOO) else None
        except UserError:  # the author's table no longer exists
            place = None
        return place.repo if isinstance(place, HubFile) else None
    backbone = _part(config, "model", "detector", "backbone")
    name = backbone.get("name")
    if backbone.get("pretrained") is not True or not isinstance(name, str):
        return None
    found = timm.get_pretrained_cfg(name, allow_unregistered=False)
    return getattr(found, "hf_hub_id", None)


def data_of(config: Mapping[str, Any]) -> str | None:
    """A description of the training data, if it is known; its folder's name is private."""
    target = _part(config, "data", "source").get("_target_")
    drawn = isinstance(target, str) and target.startswith(SYNTHETIC)
    return "synthetic scenes of codetr" if drawn else None


def results_text(results: RunResults) -> str | None:
    """A Markdown table of the metrics, if there are any."""
    if not results.metrics:
        return None
    lines = [f"| {name} | {value:.4f} |" for name, value in results.metrics.items()]
    head = "On the validation split, by COCO's metrics, from 0 to 1:"
    return "\n".join([head, "", "| metric | value |", "| --- | --- |", *lines])


def training_text(config: Mapping[str, Any], base: str | None, epoch: int | None) -> str | None:
    """A list of what the record says about training, if anything."""
    schemes, heads = (list(_part(config, key)) for key in ("scheme", "aux_heads"))
    items = []
    if base:
        items.append(f"started from [{base}](https://huggingface.co/{base})")
    if schemes:
        items.append(f"training schemes: {', '.join(schemes)}")
    if heads:
        items.append(f"auxiliary heads: {', '.join(heads)}")
    if epoch:
        items.append(f"weights of epoch {epoch}, the best validation")
    return "\n".join(f"- {item}" for item in items) or None


def _part(config: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The part of a configuration at ``keys``; empty if there is none."""
    found: Any = config
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
