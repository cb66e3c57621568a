"""Compare a whole detector with a recorded run: one or more training steps and an evaluation.

This is the part that all official codes share; a ``Family`` describes the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from codetr.loss_terms import Losses
from codetr.structures import Targets
from tools.parity.case import Case, load_case
from tools.parity.detections import best_detections
from tools.parity.measured import Measured, logged
from tools.parity.noise import as_recorded
from tools.parity.recorded import Recorded
from tools.parity.rules import BUILT, COUNTER
from tools.parity.step import Step, count_rows, entered, gradient_rows, loss_rows, training_step
from tools.parity.table import Row, Tolerances, compare
from tools.parity.values import Values

TEACHER = "teacher"
DENOISING_LOSSES = ("tgt_", "_dn")
"""Parts of official names of losses that are zero in a batch without any box; ours are missing."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is specific to the official code of some detectors.

    ``values`` are all arrays that may be recorded, by name, except pairs of ``measured`` layers;
    ``watched`` are modules of the detector whose calls it reads. Padded tokens are ignored in the
    arrays (B, tokens, C) listed in ``visible``. ``loss_name`` maps our loss name and the number of
    layers to the official name. ``unread``: exactly the parameters that we drop have no gradient.
    ``further`` adds rows, ``compared`` filters them by quantity.
    """

    values: Callable[[Case, Step], Values]
    tolerances: Tolerances
    loss_name: Callable[[str, int], str]
    watched: Callable[[nn.Module], dict[str, nn.Module]] = lambda _: {}
    measured: Callable[[Case, Step], Iterable[Measured]] = lambda _, step: ()
    visible: tuple[str, ...] = ()
    unread: bool = False
    further: Callable[[Case, Step], Iterable[Row]] = lambda _, step: ()
    compared: Callable[[Case, str], bool] = lambda _, quantity: True


def check_detector(
    recorded: Recorded, family: Family, dtype: torch.dtype = torch.float64
) -> tuple[list[Row], list[Row]]:
    """One row per recorded quantity, and those that cannot be compared in ``dtype``. A record may
    hold fewer than the published ones.
    """
    whole = load_case(recorded, dtype)
    rows = list(recorded.input_rows())
    for number, (kind, case) in enumerate(_steps(whole)):
        with entered(as_recorded(case)):
            step = training_step(case, family.watched(case.detector))
            with torch.no_grad():
                measured = list(family.measured(case, step))
                if number == 0:
                    rows += _value_rows(case, step, family, measured)
            if recorded.losses:
                said = _step_rows(case, step, family, measured, kind)
                rows += [replace(row, quantity=f"{row.quantity} {kind}".rstrip()) for row in said]
    rows += _parameter_rows(whole, family)
    if not recorded.of_co_detr:
        rows += _evaluation_rows(case, step, family)
    compared = [row for row in rows if family.compared(whole, row.quantity)]
    return compared, [row for row in rows if row not in compared]


def _steps(case: Case) -> Iterator[tuple[str, Case]]:
    """The training steps by the end of their recorded names: with the recorded boxes of teachers,
    without them, or the only one.
    """
    arrays, teachers = case.recorded.arrays, case
    if "target_ext_boxes_0" in arrays:
        boxes = tuple(
            Targets(
                boxes=torch.from_numpy(arrays[f"target_ext_boxes_{b}"]).to(own.boxes),
                labels=torch.from_numpy(arrays[f"target_ext_labels_{b}"]),
                weights=torch.from_numpy(arrays[f"target_ext_scores_{b}"]).to(own.boxes),
                size=own.size,
            )
            for b, own in enumerate(case.batch.targets)
        )
        teachers = replace(case, batch=replace(case.batch, teachers=(boxes,)))
    if "losses_without_teacher" not in case.recorded.said:
        yield "", teachers
        return
    if teachers is not case:
        yield "with_teacher", teachers
    if TEACHER in case.schemes:
        del case.schemes[TEACHER]
    yield "without_teacher", case


def _value_rows(
    case: Case, step: Step, family: Family, measured: Sequence[Measured]
) -> Iterator[Row]:
    """Arrays, matched pairs and counts."""
    recorded, values = case.recorded, family.values(case, step)
    image = dict.fromkeys(family.visible, ~step.memory.padding[..., None])
    yield from recorded.rows(values, family.tolerances, image)
    for one in measured:
        for name in one.matches:
            if name in recorded.arrays:
                official = torch.from_numpy(recorded.arrays[name]).long()
                ours = one.without_copies(one.pairs_by_image())
                yield compare(name, ours, one.without_copies(official))
    yield from count_rows(recorded, values)
    yield from family.further(case, step)


def _step_rows(
    case: Case, step: Step, family: Family, measured: Sequence[Measured], kind: str
) -> Iterator[Row]:
    """Losses, logged metrics, weights, the total, gradients and frozen parameters."""
    layers, official = len(step.main.layers), case.recorded.step(kind)
    known = dict(logged(measured))
    if step.noised is None:
        idle = (n for n in official.losses if any(part in n for part in DENOISING_LOSSES))
        known |= dict.fromkeys(idle, 0.0)
    constants = _constants(case, layers)
    ours: Losses = {
        family.loss_name(name, layers): term._replace(
            sum=term.value + constants.get(name, 0.0), over=None
        )
        for name, term in step.losses.items()
    }
    total = step.total + sum(own * step.losses[name].weight for name, own in constants.items())
    yield from loss_rows(official, ours, total, family.tolerances, known)
    yield from gradient_rows(official, case.root, case.own_names, family.tolerances.gradients)
    if case.recorded.frozen:
        trained = {name for name, p in case.root.named_parameters() if p.requires_grad}
        frozen = {own for name in case.recorded.frozen for own in case.own_names(name) or ()}
        yield compare("frozen parameters that we train", len(trained & frozen), 0)
    if family.unread:
        norms = case.recorded.said["grad_norms"]
        none = {name for name, value in norms.items() if value is None}
        yield compare("parameters left out", len(none ^ set(case.conversion.dropped)), 0)


def _constants(case: Case, layers: int) -> dict[str, float]:
    """What the official losses have on top of ours, by our name. Its GIoU loss for a teacher's box
    of score s is 1 - s GIoU, ours is s (1 - GIoU): the mean of 1 - s, which has no gradient.
    """
    return {
        f"{TEACHER}/{number}/layer{i}/giou": float((1 - torch.cat([t.weights for t in own])).mean())
        for number, own in enumerate(case.batch.teachers)
        for i in range(layers)
    }


def _parameter_rows(case: Case, family: Family) -> Iterator[Row]:
    """Parameter counts, including official ones that we do not have: unread ones, and rows of the
    label embedding that no class uses.
    """
    shapes, parameters = case.recorded.shapes, list(case.root.parameters())
    left_out = 0
    if family.unread:
        names = (n for n in case.conversion.dropped if not n.endswith((*BUILT, COUNTER)))
        left_out += sum(torch.Size(shapes[name]).numel() for name in names)
    if "denoising" in case.schemes:
        held, width = shapes.get("label_enc.weight", (0, 0))
        left_out += max(held - case.recorded.num_classes, 0) * width
    counts = {
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }
    for name, count in counts.items():
        if name in case.recorded.keys:
            yield compare(name, count + left_out, case.recorded.keys[name])


def _evaluation_rows(case: Case, step: Step, family: Family) -> Iterator[Row]:
    """Detections, and the largest difference of predictions from those of the training ``step``,
    which official codes name differently.
    """
    recorded = case.recorded
    case.root.eval()
    with torch.no_grad(), entered(as_recorded(case)):
        last = case.detector(case.batch.images)
    trained = step.main.layers[-1]
    parts = [(getattr(last, n) - getattr(trained, n)).abs().max() for n in ("boxes", "logits")]
    names = ("eval_minus_train_max", "eval_boxes_diff_to_train")
    yield from recorded.rows(dict.fromkeys(names, torch.stack(parts)), family.tolerances)
    if "post_scores_0" in recorded.arrays:
        limit = len(recorded.arrays["post_scores_0"])
        yield compare("max_detections", case.postprocess.max_detections, limit)
        yield from best_detections(recorded, last, case.batch, limit)
