"""A recorded run of Conditional DETR, DAB-DETR, DN-DETR or DINO against ours, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from codetr.checkpoints.conditional_detr import convert_conditional_detr, is_conditional_detr
from codetr.checkpoints.dino import convert_dino
from codetr.checkpoints.official import Conversion
from codetr.structures import Batch
from codetr.supervision.schemes import query_denoising
from codetr.supervision.schemes.denoising import GROUP as CONTRASTIVE
from tools.parity.detr_run import (
    NO_DROPOUT,
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
from tools.parity.recorded_detr import RecordedDetr, make_batch
from tools.parity.student_losses import Measured, logged, official_loss, pattern
from tools.parity.student_noise import contrastive_noise, query_noise
from tools.parity.student_values import noised, step_values
from tools.parity.table import EXACT, Row, Tolerance, compare

ARRAYS = Tolerance(absolute=1e-5, relative=1e-6)
BOXES = Tolerance(absolute=1e-6)
LOSSES = Tolerance(absolute=1e-12, relative=1e-9)
GRADIENTS = Tolerance(absolute=1e-9, relative=1e-7)
UNDISTURBED = Tolerance(absolute=1e-10)

WHOLE_NUMBERS = ("topk_index", "match_", "proposal_valid", "attention_mask", "dn_pad", "dn_slot")
NOISE = {query_denoising.GROUP: query_noise, CONTRASTIVE: contrastive_noise}
DENOISING_LOSSES = ("tgt_", "_dn")


def check_student(folder: Path) -> list[Row]:
    """Every recorded quantity against ours. A folder may record fewer than the published ones."""
    recorded = RecordedDetr.load(folder)
    model = load_model(recorded, lambda state, _: _convert(state), NO_DROPOUT)
    inputs = recorded.inputs()
    batch = make_batch(inputs)
    detector = model.detector
    watched = {"backbone": detector.backbone, "norm": detector.decoder.norm}
    watched["last"] = detector.decoder.layers[-1]
    step = training_step(model, batch, watched, _recorded_noise(recorded, model, batch))
    values = step_values(detector, step, batch) | _matches(model, step, batch)
    rows = [
        *input_rows(recorded, inputs),
        *(
            recorded.row(name, value, _tolerance(name))
            for name, value in values.items()
            if name in recorded.arrays
        ),
    ]
    if recorded.losses:
        rows += _losses(recorded, model, batch, step)
        double = recorded.losses.get("float64", recorded.losses)
        norms = {name: value or 0.0 for name, value in double["grad_norms"].items()}
        everything = (double["grad_norm_all"], GRADIENTS)
        rows += gradient_rows(recorded, model, norms, everything, GRADIENTS)
    rows += parameter_rows(recorded, model.root, _unread(recorded, model))
    rows += _evaluation(recorded, model, batch, step)
    return rows


def _tolerance(name: str) -> Tolerance:
    if name.startswith(WHOLE_NUMBERS) or "labels" in name:
        return EXACT
    return BOXES if "boxes" in name or "references" in name else ARRAYS


def _convert(official: Mapping[str, Tensor]) -> Conversion:
    convert = convert_conditional_detr if is_conditional_detr(official) else convert_dino
    return convert(official)


def _recorded_noise(
    recorded: RecordedDetr, model: Model, batch: Batch
) -> list[AbstractContextManager[Any]]:
    counts = [len(t) for t in batch.targets]
    if max(counts) == 0:
        return []
    return [
        mock.patch.object(
            model.schemes[name], "draw", mock.Mock(return_value=noise(recorded, counts))
        )
        for name, noise in NOISE.items()
        if name in model.schemes
    ]


def _measured(model: Model, step: Step, batch: Batch) -> Iterator[Measured]:
    """Every layer that the official code measures, matched again by the schemes' own matchers."""
    one, count = model.schemes["one_to_one"], model.detector.num_layers
    main, group = step.main, noised(step)
    matched = {"one_to_one": (main.layers, one.matcher(main.layers, batch.targets))}
    if group is not None:
        answer = step.decoded[group]
        assert answer.group.assignment is not None
        matched[group] = (answer.layers, (answer.group.assignment,) * count)
    for scheme, (layers, pairs) in matched.items():
        for i, (layer, own) in enumerate(zip(layers, pairs, strict=True)):
            name = pattern(scheme, f"layer{i}", count)
            yield Measured(name=name, predictions=layer, pairs=own)
    if main.proposals is not None:
        (own,) = one.proposal_matcher([main.proposals], batch.targets)
        yield Measured(name="{}_interm", predictions=main.proposals, pairs=own)


@torch.no_grad()
def _matches(model: Model, step: Step, batch: Batch) -> dict[str, Tensor]:
    """``match_*``: image, query and target of every pair."""
    count = model.detector.num_layers
    names = {pattern("one_to_one", f"layer{i}", count): f"l{i}" for i in range(count)}
    names["{}_interm"] = "interm"
    return {
        f"match_{names[one.name]}": image_query_target(one.pairs, batch.targets)
        for one in _measured(model, step, batch)
        if one.name in names
    }


def _losses(recorded: RecordedDetr, model: Model, batch: Batch, step: Step) -> Iterator[Row]:
    """Where no image has a box, the official denoising losses are zeros, and ours are not there."""
    undenoised = noised(step) is None
    yield from loss_rows(
        recorded,
        step,
        lambda name: official_loss(name, model.detector.num_layers),
        dict(logged(list(_measured(model, step, batch)), batch)),
        LOSSES,
        absent=lambda name: undenoised and any(mark in name for mark in DENOISING_LOSSES),
    )


def _unread(recorded: RecordedDetr, model: Model) -> int:
    """Numbers in rows of the official table of labels that no class has."""
    if "denoising" not in model.schemes:
        return 0
    rows, width = recorded.shapes.get("label_enc.weight", (0, 0))
    return max(rows - recorded.num_classes, 0) * width


def _evaluation(recorded: RecordedDetr, model: Model, batch: Batch, step: Step) -> Iterator[Row]:
    """The best detections; training does not change predictions."""
    last, trained = evaluated(model, batch), step.main.layers[-1]
    differences = [
        (getattr(last, n) - getattr(trained, n)).abs().max() for n in ("boxes", "logits")
    ]
    for name in ("eval_boxes_diff_to_train", "eval_minus_train_max"):
        if name in recorded.arrays:
            yield recorded.row(name, torch.stack(differences), UNDISTURBED)
    if "post_scores_0" in recorded.arrays:
        limit = len(recorded.arrays["post_scores_0"])
        yield compare("max_detections", model.experiment.postprocess.max_detections, limit)
        yield from best_detections(recorded, last, batch, limit)
