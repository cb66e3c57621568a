"""YOLOS and ViDT, whose queries are tokens of the backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from codetr.checkpoints.renaming import Conversion
from codetr.checkpoints.vidt import convert_vidt
from codetr.checkpoints.yolos import convert_yolos
from tools.parity.case import Case
from tools.parity.detector import Family
from tools.parity.measured import Measured, matched
from tools.parity.step import Step
from tools.parity.table import Row, Tolerance, Tolerances, compare
from tools.parity.values import layers, numbered


def _measured(case: Case, step: Step) -> Iterator[Measured]:
    one, main = case.schemes["one_to_one"], step.main
    match = "match" if len(main.layers) == 1 else "match_l{}"
    return matched("one_to_one", one, main, case.batch.targets, match)


def _answers(step: Step) -> dict[str, Tensor]:
    """Predictions; without the axis of layers for a detector with one layer."""
    first, *rest = step.main.layers
    if not rest:
        return {"boxes": first.boxes, "logits": first.logits}
    return layers("", step.main.layers)


def _of_yolos(_: Case, step: Step) -> dict[str, Tensor]:
    given, made = step.seen.inputs, step.seen.outputs
    return _answers(step) | {
        "patch": made["patches"][0].flatten(1, 2),
        "block0_in": given["first"][0][0],
        "block0_out": made["first"][0],
        "block11_in": given["last"][0][0],
        "block11_out": made["last"][0],
        "final": made["norm"][0],
    }


def _of_vidt(_: Case, step: Step) -> dict[str, Tensor]:
    pyramid, queries = step.seen.outputs["backbone"][0], step.main.group.queries
    assert queries.position is not None
    hidden = [queries.content, *(made.content for made in _layers(step))]
    masks = step.memory.padding.split([h * w for h, w in step.memory.shapes], dim=1)
    return _answers(step) | {
        **numbered("patch_{}", pyramid.maps),
        **numbered("stage{}_det", (step.seen.outputs[f"stage{i}"][0][1] for i in range(4))),
        "det_projected": queries.content,
        "query_pos": queries.position[:1],  # the same for all images
        **numbered("mask_{}", map(Tensor.unflatten, masks, repeat(1), step.memory.shapes)),
        "init_reference": queries.anchors,
        "inter_references": torch.stack([layer.boxes for layer in step.main.layers]),
        "decoder_hidden": torch.stack(hidden),
    }


def _layers(step: Step) -> Iterator[Any]:
    """Outputs of the decoder's layers."""
    number = 0
    while made := step.seen.outputs.get(f"layer{number}"):
        yield made[0]
        number += 1


def _left_out(case: Case) -> int:
    shapes = case.recorded.shapes
    return sum(torch.Size(shapes[name]).numel() for name in case.conversion.dropped)


def _parameters_left_out(case: Case, _: Step) -> Iterable[Row]:
    """Parameters without gradient in the official code are exactly those that we drop."""
    losses = case.recorded.losses
    if losses:
        norms = losses.get("float64", losses)["grad_norms"]
        none = {name for name, value in norms.items() if value is None}
        yield compare("parameters left out", len(none ^ set(case.conversion.dropped)), 0)


def _family(
    convert: Callable[[Mapping[str, Tensor]], Conversion],
    watched: Callable[[Any], dict[str, nn.Module]],
    values: Callable[[Case, Step], Mapping[str, Any]],
) -> Family:
    return Family(
        convert=lambda state, _: convert(state),
        watched=watched,
        values=values,
        measured=_measured,
        tolerances=Tolerances(
            arrays=Tolerance(absolute=1e-5, relative=1e-7),
            losses=Tolerance(relative=1e-9),
            gradients=Tolerance(absolute=1e-9, relative=1e-7),
            special={"^boxes$|reference": Tolerance(absolute=1e-6)},
        ),
        left_out=_left_out,
        further=_parameters_left_out,
    )


YOLOS = _family(
    convert_yolos,
    lambda detector: {
        "patches": detector.backbone.body.patch_embed,
        "first": detector.backbone.body.blocks[0],
        "last": detector.backbone.body.blocks[-1],
        "norm": detector.backbone.body.norm,
    },
    _of_yolos,
)
VIDT = _family(
    convert_vidt,
    lambda detector: {
        "backbone": detector.backbone,
        **{f"stage{i}": part[-1] for i, part in enumerate(detector.backbone.attention)},
        **{f"layer{i}": part for i, part in enumerate(detector.decoder.decoder.layers)},
    },
    _of_vidt,
)
