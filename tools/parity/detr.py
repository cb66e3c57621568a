"""A recorded run of DETR's family against ours in float64: one training step, one evaluation.

What the official codes have in common is here; a ``Family`` says what is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from codetr.structures import Predictions
from tools.parity.case import Case, Convert, load_case
from tools.parity.detections import best_detections
from tools.parity.measured import Measured, logged, matches, official_loss
from tools.parity.recorded import Recorded
from tools.parity.step import Step, evaluated, gradient_rows, training_step
from tools.parity.table import EXACT, Row, Tolerance, compare

INPUTS = Tolerance(relative=1e-6)
NO_DROPOUT = ("model.dropout=0.0",)
"""Of attention, too, which has it as an argument."""


def with_zeros(norms: Mapping[str, float | None]) -> dict[str, float]:
    """Gradient norms, where nothing has the norm 0."""
    return {name: value or 0.0 for name, value in norms.items()}


def recorded_number(recorded: Recorded) -> int | None:
    """Of detections, if there are any."""
    scores = recorded.arrays.get("post_scores_0")
    return None if scores is None else len(scores)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is special about the official code of some detectors.

    ``convert`` names their weights and ``overrides`` makes ours drop nothing; ``watched`` are the
    detector's parts to look into, ``patches`` what a run is made under. ``values`` is everything
    that may be recorded, by its name, but for what is ``measured``; ``visible`` names arrays
    (B, tokens, C) of which padded tokens do not count. ``tolerance`` is that of an array by its
    name, ``losses`` that of losses, ``gradients`` that of norms, which ``norms`` chooses.
    ``encoder`` is the official suffix of the encoder's losses; ``absent`` losses are zeros there,
    and ours are not there; ``left_out`` is how many numbers of theirs we do not have; ``limit`` the
    number of detections; ``further`` makes more rows.
    """

    convert: Convert
    watched: Callable[[Any], dict[str, nn.Module]]
    values: Callable[[Case, Step], Mapping[str, Any]]
    measured: Callable[[Case, Step], Iterator[Measured]]
    tolerance: Callable[[str], Tolerance]
    losses: Tolerance
    gradients: Tolerance
    overrides: Sequence[str] = ()
    patches: Callable[[Case], Sequence[AbstractContextManager[Any]]] = lambda _: ()
    visible: tuple[str, ...] = ()
    norms: Callable[[Mapping[str, float | None]], Mapping[str, float]] = with_zeros
    encoder: str = "_enc"
    absent: Callable[[Step, str], bool] = lambda _, name: False
    left_out: Callable[[Case], int] = lambda _: 0
    limit: Callable[[Recorded], int | None] = recorded_number
    further: Callable[[Case], Iterable[Row]] = lambda _: ()


def check_detr(recorded: Recorded, family: Family) -> list[Row]:
    """Every recorded quantity against ours. A folder may record fewer than the published ones."""
    case = load_still(recorded, family.convert, family.overrides)
    step = training_step(case, family.watched(case.detector), family.patches(case))
    last = evaluated(case, family.patches(case))
    with torch.no_grad():
        measured = list(family.measured(case, step))
        values = {**family.values(case, step), **matches(measured), **_disturbance(step, last)}
    rows = list(_input_rows(recorded))
    for name, value in values.items():
        if name in recorded.arrays:
            image = ~step.memory.padding[..., None] if name in family.visible else None
            rows.append(recorded.row(name, value, family.tolerance(name), image))
    if recorded.losses:
        rows += _loss_rows(case, step, family, dict(logged(measured)))
        double = recorded.losses.get("float64", recorded.losses)
        everything = (double["grad_norm_all"], family.gradients)
        norms = family.norms(double["grad_norms"])
        rows += gradient_rows(case, norms, everything, family.gradients)
    rows += parameter_rows(case, family.left_out(case))
    rows += family.further(case)
    limit = family.limit(recorded)
    if limit is not None:
        rows.append(compare("max_detections", case.postprocess.max_detections, limit))
        rows += best_detections(recorded, last, case.batch, limit)
    return rows


def load_still(recorded: Recorded, convert: Convert, overrides: Sequence[str] = ()) -> Case:
    """The recorded case without dropout. Raises UserError as ``load_case``."""
    case = load_case(recorded, convert, overrides)
    for module in case.root.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return case


def parameter_rows(case: Case, left_out: int = 0) -> Iterator[Row]:
    """Their number, with ``left_out`` that we do not have."""
    parameters = list(case.root.parameters())
    counts = {
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }
    for name, count in counts.items():
        if name in case.recorded.keys:
            yield compare(name, count + left_out, case.recorded.keys[name])


def _input_rows(recorded: Recorded) -> Iterator[Row]:
    inputs = recorded.inputs()
    flat = inputs.pixels.reshape(len(inputs.pixels), -1).astype(np.float64)
    values = {
        "image_first": inputs.pixels[:, :, :2, :8],
        "image_mean_std": np.stack([flat.mean(1), flat.std(1)], axis=1),
        **{f"gt_boxes_cxcywh_{b}": boxes for b, boxes in enumerate(inputs.relative or ())},
        **{f"gt_labels_{b}": labels for b, labels in enumerate(inputs.labels)},
    }
    for name, value in values.items():
        if name in recorded.arrays:
            yield recorded.row(name, value, EXACT if "labels" in name else INPUTS)


def _disturbance(step: Step, last: Predictions) -> dict[str, torch.Tensor]:
    """How far evaluation is from training: official codes differ in the name."""
    trained = step.main.layers[-1]
    largest = torch.stack(
        [(getattr(last, n) - getattr(trained, n)).abs().max() for n in ("boxes", "logits")]
    )
    return {"eval_minus_train_max": largest, "eval_boxes_diff_to_train": largest}


def _loss_rows(
    case: Case, step: Step, family: Family, logged_values: dict[str, float]
) -> Iterator[Row]:
    """Raw losses and what is only logged, weights, and the total."""
    layers, losses = len(step.main.layers), case.recorded.losses
    ours = {official_loss(n, layers, family.encoder): term for n, term in step.losses.items()}
    raw = {name: float(term.value.detach()) for name, term in ours.items()} | logged_values
    double, weights = losses.get("float64", losses), losses["weight_dict_used"]
    for name, value in double["losses_unweighted"].items():
        missing = 0.0 if family.absent(step, name) else float("nan")
        yield compare(name, raw.get(name, missing), value, family.losses)
    for name, value in weights.items():
        if name in ours or not family.absent(step, name):
            yield compare(f"weight of {name}", ours[name].weight if name in ours else 0.0, value)
    extra = [name for name in ours if name not in weights and not family.absent(step, name)]
    yield compare("losses that only we have", len(extra), 0)
    yield compare("weighted total", step.total, double["weighted_total"], family.losses)
