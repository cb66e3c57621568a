"""Compare a whole detector with a recorded run: one or more training steps and an evaluation.

This is the part that all official codes share; a ``Family`` describes the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from codetr.loss_terms import Losses
from codetr.structures import Predictions
from tools.parity.case import Case, Convert, load_case
from tools.parity.detections import best_detections
from tools.parity.loss_names import detr_loss
from tools.parity.measured import Measured, logged, matches
from tools.parity.recorded import Recorded, RecordedStep
from tools.parity.step import (
    Patches,
    Step,
    count_rows,
    evaluated,
    gradient_rows,
    loss_rows,
    training_step,
)
from tools.parity.table import Row, Tolerances, compare

NO_DROPOUT = ("model.dropout=0.0",)
"""Also switches off dropout of attention, which is a constructor argument."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is specific to the official code of some detectors.

    ``convert`` renames its weights; ``overrides`` of the experiment switch dropout off. ``watched``
    are modules of the detector to record, ``patches`` are active in every run, ``steps`` yields the
    training steps with the suffix of their recorded names. ``values`` are all arrays that may be
    recorded, by name, except those of ``measured``; padded tokens are ignored in the arrays (B,
    tokens, C) listed in ``visible``. ``loss_name`` maps our loss name and the number of layers to
    the official name; ``absent`` losses are officially zero and missing in ours; ``constants`` are
    added to our losses, by our name. ``left_out`` is the number of official parameters that we do
    not have; ``further`` adds rows, ``compared`` filters them by quantity.
    """

    convert: Convert
    values: Callable[[Case, Step], Mapping[str, Any]]
    tolerances: Tolerances
    overrides: Sequence[str] = ()
    watched: Callable[[Any], dict[str, nn.Module]] = lambda _: {}
    patches: Callable[[Case], Patches] = lambda _: ()
    steps: Callable[[Case], Iterable[tuple[str, Case]]] = lambda case: [("", case)]
    measured: Callable[[Case, Step], Iterator[Measured]] = lambda _, step: iter(())
    visible: tuple[str, ...] = ()
    loss_name: Callable[[str, int], str] = detr_loss
    absent: Callable[[Step, str], bool] = lambda _, name: False
    constants: Callable[[Case, Step], Mapping[str, float]] = lambda _, step: {}
    left_out: Callable[[Case], int] = lambda _: 0
    further: Callable[[Case, Step], Iterable[Row]] = lambda _, step: ()
    compared: Callable[[Case, str], bool] = lambda _, quantity: True


def check_detector(
    recorded: Recorded, family: Family, dtype: torch.dtype = torch.float64
) -> list[Row]:
    """One row per recorded quantity. A record may hold fewer than the published ones."""
    whole = load_case(recorded, family.convert, family.overrides, dtype)
    rows = list(recorded.input_rows())
    for number, (kind, case) in enumerate(family.steps(whole)):
        step = training_step(case, family.watched(case.detector), family.patches(case))
        with torch.no_grad():
            measured = list(family.measured(case, step))
            if number == 0:
                values = {**family.values(case, step), **matches(measured)}
                image = dict.fromkeys(family.visible, ~step.memory.padding[..., None])
                rows += recorded.rows(values, family.tolerances, image)
                rows += count_rows(recorded, values)
                rows += family.further(case, step)
        if recorded.losses:
            said = _step_rows(case, step, family, measured, recorded.step(kind))
            rows += [replace(r, quantity=f"{r.quantity} {kind}".rstrip()) for r in said]
    rows += _parameter_rows(whole, family.left_out(whole))
    if "post_scores_0" in recorded.arrays:
        limit = len(recorded.arrays["post_scores_0"])
        last = evaluated(case, family.patches(case))
        rows += recorded.rows(_disturbance(step, last), family.tolerances)
        rows.append(compare("max_detections", case.postprocess.max_detections, limit))
        rows += best_detections(recorded, last, case.batch, limit)
    return [row for row in rows if family.compared(whole, row.quantity)]


def _step_rows(
    case: Case,
    step: Step,
    family: Family,
    measured: Sequence[Measured],
    official: RecordedStep,
) -> Iterator[Row]:
    """Losses, logged metrics, weights, the total, gradients and frozen parameters."""
    layers = len(step.main.layers)
    absent = {name: 0.0 for name in official.losses if family.absent(step, name)}
    constants = family.constants(case, step)
    ours: Losses = {
        family.loss_name(name, layers): term._replace(
            sum=term.value + constants.get(name, 0.0), over=None
        )
        for name, term in step.losses.items()
    }
    total = step.total + sum(own * step.losses[name].weight for name, own in constants.items())
    known = dict(logged(measured)) | absent
    yield from loss_rows(official, ours, total, family.tolerances, known)
    yield from gradient_rows(official, case.root, case.own_names, family.tolerances.gradients)
    if case.recorded.frozen:
        trained = {name for name, p in case.root.named_parameters() if p.requires_grad}
        frozen = {own for name in case.recorded.frozen for own in case.own_names(name) or ()}
        yield compare("frozen parameters that we train", len(trained & frozen), 0)


def _parameter_rows(case: Case, left_out: int) -> Iterator[Row]:
    """Parameter counts, including ``left_out`` that we do not have."""
    parameters = list(case.root.parameters())
    counts = {
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }
    for name, count in counts.items():
        if name in case.recorded.keys:
            yield compare(name, count + left_out, case.recorded.keys[name])


def _disturbance(step: Step, last: Predictions) -> dict[str, Tensor]:
    """Largest difference between evaluation and training; official codes name it differently."""
    trained = step.main.layers[-1]
    largest = torch.stack(
        [(getattr(last, n) - getattr(trained, n)).abs().max() for n in ("boxes", "logits")]
    )
    return {"eval_minus_train_max": largest, "eval_boxes_diff_to_train": largest}
