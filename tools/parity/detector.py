"""A recorded run of a whole detector against ours: one training step or several, one evaluation.

What the official codes have in common is here; a ``Family`` says what is its own.
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
"""Of attention, too, which has it as an argument."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is special about the official code of some detectors.

    ``convert`` names their weights and ``overrides`` makes ours drop nothing; ``watched`` are the
    detector's parts to look into, ``patches`` what a run is made under, ``steps`` the training
    steps, each by what its numbers' names end with. ``values`` is everything that may be recorded,
    by its name, but for what is ``measured``; of the arrays (B, tokens, C) in ``visible`` padded
    tokens do not count. ``loss_name`` is the official name of a loss of ours in a detector of so
    many layers; ``absent`` losses are zeros there, and ours are not there; ``constants`` is what
    official losses have and ours, by our name, lack. ``left_out`` is how many numbers of theirs we
    do not have; ``further`` makes more rows, ``compared`` says which rows are compared.
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
    """Every recorded quantity against ours. A folder may record fewer than the published ones."""
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
    """Losses and what is only logged, weights, the total, gradients, and what is not trained."""
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
    """Their number, with ``left_out`` that we do not have."""
    parameters = list(case.root.parameters())
    counts = {
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }
    for name, count in counts.items():
        if name in case.recorded.keys:
            yield compare(name, count + left_out, case.recorded.keys[name])


def _disturbance(step: Step, last: Predictions) -> dict[str, Tensor]:
    """How far evaluation is from training: official codes differ in the name."""
    trained = step.main.layers[-1]
    largest = torch.stack(
        [(getattr(last, n) - getattr(trained, n)).abs().max() for n in ("boxes", "logits")]
    )
    return {"eval_minus_train_max": largest, "eval_boxes_diff_to_train": largest}
