"""A recorded run of YOLOS or ViDT against ours, in float64: one training step, one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codetr.checkpoints.official import Conversion
from codetr.checkpoints.vidt import convert_vidt
from codetr.checkpoints.yolos import convert_yolos
from tools.parity.detr_run import (
    Model,
    Step,
    best_detections,
    evaluated,
    gradient_rows,
    image_query_target,
    input_rows,
    load_model,
    loss_rows,
    parameter_rows,
    training_step,
)
from tools.parity.ms_losses import logged_errors, official_loss
from tools.parity.recorded_detr import RecordedDetr, make_batch
from tools.parity.table import EXACT, Row, Tolerance, compare

ARRAYS = Tolerance(absolute=1e-5, relative=1e-7)
BOXES = Tolerance(absolute=1e-6)
LOSSES = Tolerance(relative=1e-9)
GRADIENTS = Tolerance(absolute=1e-9, relative=1e-7)


@dataclass(frozen=True, kw_only=True)
class Family:
    """``watched``: the parts to look into, of a detector; ``values``: what the family records, by
    its names, from them.
    """

    convert: Callable[[Mapping[str, Tensor]], Conversion]
    watched: Callable[[Any], dict[str, nn.Module]]
    values: Callable[[Step], dict[str, Tensor]]


def check_tokens(folder: Path) -> list[Row]:
    """Every recorded quantity against ours. A folder may record fewer than the published one."""
    recorded = RecordedDetr.load(folder)
    family = next(f for name, f in FAMILIES.items() if name in recorded.experiment)
    model = load_model(recorded, lambda state, _: family.convert(state))
    inputs = recorded.inputs()
    batch = make_batch(inputs)
    step = training_step(model, batch, family.watched(model.detector))
    layers = step.main.layers
    pairs = model.schemes["one_to_one"].matcher(layers, batch.targets)
    last, trained = evaluated(model, batch), layers[-1]
    names = ["match"] if len(pairs) == 1 else [f"match_l{i}" for i in range(len(pairs))]
    values = _answers(step) | family.values(step)
    values |= {
        name: image_query_target(own, batch.targets) for name, own in zip(names, pairs, strict=True)
    }
    values["eval_minus_train_max"] = torch.stack(
        [(getattr(last, n) - getattr(trained, n)).abs().max() for n in ("boxes", "logits")]
    )
    rows = [
        *input_rows(recorded, inputs),
        *(
            recorded.row(name, value, _tolerance(name))
            for name, value in values.items()
            if name in recorded.arrays
        ),
    ]
    if recorded.losses:
        logged = logged_errors({"o2o": (layers, pairs)}, batch)
        rows += loss_rows(recorded, step, lambda n: official_loss(n, len(layers)), logged, LOSSES)
        rows += _gradients(recorded, model)
    left_out = sum(torch.Size(recorded.shapes[name]).numel() for name in model.conversion.dropped)
    rows += parameter_rows(recorded, model.root, left_out)
    if "post_scores_0" in recorded.arrays:
        limit = len(recorded.arrays["post_scores_0"])
        rows.append(compare("max_detections", model.experiment.postprocess.max_detections, limit))
        rows += best_detections(recorded, last, batch, limit)
    return rows


def _tolerance(name: str) -> Tolerance:
    if name.startswith(("match", "mask_")):
        return EXACT
    return BOXES if name == "boxes" or "reference" in name else ARRAYS


def _answers(step: Step) -> dict[str, Tensor]:
    """Predictions; those of a detector with one answer are recorded without the layers' axis."""
    layers = step.main.layers
    if len(layers) == 1:
        return {"boxes": layers[0].boxes, "logits": layers[0].logits}
    logits = {f"logits_l{i}": layer.logits for i, layer in enumerate(layers)}
    return {"boxes": torch.stack([layer.boxes for layer in layers]), **logits}


def _of_yolos(step: Step) -> dict[str, Tensor]:
    given, made = step.seen.inputs, step.seen.outputs
    return {
        "patch": made["patches"][0].flatten(1, 2),
        "block0_in": given["first"][0][0],
        "block0_out": made["first"][0],
        "block11_in": given["last"][0][0],
        "block11_out": made["last"][0],
        "final": made["norm"][0],
    }


def _of_vidt(step: Step) -> dict[str, Tensor]:
    pyramid, queries = step.seen.outputs["backbone"][0], step.main.group.queries
    assert queries.position is not None
    hidden = [queries.content, *(made.content for made in _layers(step))]
    masks = step.memory.padding.split([h * w for h, w in step.memory.shapes], dim=1)
    return {
        **{f"patch_{i}": made for i, made in enumerate(pyramid.maps)},
        **{f"stage{i}_det": step.seen.outputs[f"stage{i}"][0][1] for i in range(4)},
        "det_projected": queries.content,
        "query_pos": queries.position[:1],  # the same for all images
        **{
            f"mask_{i}": mask.unflatten(1, shape)
            for i, (mask, shape) in enumerate(zip(masks, step.memory.shapes, strict=True))
        },
        "init_reference": queries.anchors,
        "inter_references": torch.stack([layer.boxes for layer in step.main.layers]),
        "decoder_hidden": torch.stack(hidden),
    }


def _layers(step: Step) -> Iterator[Any]:
    """What the decoder's layers gave."""
    number = 0
    while made := step.seen.outputs.get(f"layer{number}"):
        yield made[0]
        number += 1


FAMILIES = {
    "yolos": Family(
        convert=convert_yolos,
        watched=lambda detector: {
            "patches": detector.backbone.body.patch_embed,
            "first": detector.backbone.body.blocks[0],
            "last": detector.backbone.body.blocks[-1],
            "norm": detector.backbone.body.norm,
        },
        values=_of_yolos,
    ),
    "vidt": Family(
        convert=convert_vidt,
        watched=lambda detector: {
            "backbone": detector.backbone,
            **{f"stage{i}": part[-1] for i, part in enumerate(detector.backbone.attention)},
            **{f"layer{i}": part for i, part in enumerate(detector.decoder.decoder.layers)},
        },
        values=_of_vidt,
    ),
}
"""By a part of the experiment's name."""


def _gradients(recorded: RecordedDetr, model: Model) -> Iterator[Row]:
    """What has no gradient there is what we leave out."""
    double = recorded.losses.get("float64", recorded.losses)
    none = {name for name, value in double["grad_norms"].items() if value is None}
    yield compare("parameters left out", len(none ^ set(model.conversion.dropped)), 0)
    norms = {name: value for name, value in double["grad_norms"].items() if value is not None}
    everything = (double["grad_norm_all"], GRADIENTS)
    yield from gradient_rows(recorded, model, norms, everything, GRADIENTS)
