"""A recorded run of Conditional DETR, DAB-DETR, DN-DETR or DINO against ours, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from codetr.checkpoints.conditional_detr import convert_conditional_detr, is_conditional_detr
from codetr.checkpoints.dino import convert_dino
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.loss_terms import Losses, total_loss
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Decoded, Memory, Predictions, QueryGroup
from codetr.supervision.schemes import query_denoising
from codetr.supervision.schemes.denoising import GROUP as CONTRASTIVE
from codetr.training.losses import training_losses
from tools.parity.detections import detection_rows
from tools.parity.experiment import Experiment, build_experiment
from tools.parity.probe import Seen, probe
from tools.parity.recorded_detr import RecordedDetr, make_batch
from tools.parity.student_losses import (
    Measured,
    gradient_norms,
    logged,
    pattern,
    raw_losses,
    weights,
)
from tools.parity.student_noise import contrastive_noise, query_noise
from tools.parity.student_values import Step, step_values
from tools.parity.table import EXACT, Row, Tolerance, compare

ARRAYS = Tolerance(absolute=1e-5, relative=1e-6)
BOXES = Tolerance(absolute=1e-6)
LOSSES = Tolerance(absolute=1e-12, relative=1e-9)
GRADIENTS = Tolerance(absolute=1e-9, relative=1e-7)
INPUTS = Tolerance(relative=1e-6)
UNDISTURBED = Tolerance(absolute=1e-10)

WHOLE_NUMBERS = ("topk_index", "match_", "proposal_valid", "attention_mask", "dn_pad", "dn_slot")
NOISE = {query_denoising.GROUP: query_noise, CONTRASTIVE: contrastive_noise}
DENOISING_LOSSES = ("tgt_", "_dn")


@dataclass(frozen=True, kw_only=True)
class Student:
    """An experiment with the recorded weights, in float64; ``names`` are ours by the official
    ones.
    """

    experiment: Experiment
    root: nn.ModuleDict
    names: Mapping[str, str]

    @property
    def detector(self) -> Any:
        """Looked into, beyond what its protocol promises."""
        return self.experiment.detector


def check_student(folder: Path) -> list[Row]:
    """Every recorded quantity against ours. A folder may record fewer than the published ones."""
    recorded = RecordedDetr.load(folder)
    student = _student(recorded)
    inputs = recorded.inputs()
    batch = make_batch(inputs)
    step = _training_step(recorded, student, batch)
    values = {
        "image_first": inputs.pixels[:, :, :2, :8],
        "image_mean_std": _mean_std(inputs.pixels),
        **{f"gt_boxes_cxcywh_{b}": boxes for b, boxes in enumerate(inputs.relative)},
        **{f"gt_labels_{b}": labels for b, labels in enumerate(inputs.labels)},
        **step_values(student.detector, step, batch),
        **_matches(student, step, batch),
    }
    rows = [
        recorded.row(name, value, _tolerance(name))
        for name, value in values.items()
        if name in recorded.arrays
    ]
    if recorded.losses:
        rows += _losses(recorded, student, batch, step)
        rows += _gradients(recorded, student)
    rows += _parameters(recorded, student.root)
    rows += _evaluation(recorded, student, batch, step)
    return rows


def _tolerance(name: str) -> Tolerance:
    if name.startswith(WHOLE_NUMBERS) or "labels" in name:
        return EXACT
    if name.startswith(("image_", "gt_boxes")):
        return INPUTS
    return BOXES if "boxes" in name or "references" in name else ARRAYS


def _mean_std(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    return np.stack([flat.mean(1), flat.std(1)], axis=1)


def _student(recorded: RecordedDetr) -> Student:
    """Strictly loaded, without the dropout of its recipe. Raises UserError if a key is left over or
    missing.
    """
    name = recorded.experiment
    experiment = build_experiment(name, recorded.num_classes, ["model.dropout=0.0"])
    root = nn.ModuleDict({"detector": experiment.detector, "schemes": experiment.schemes})
    official = recorded.state()
    convert = convert_conditional_detr if is_conditional_detr(official) else convert_dino
    conversion = convert(official)
    if conversion.unused:
        raise UserError(f"{recorded.folder}: no rule knows {', '.join(conversion.unused[:5])}")
    answer = root.load_state_dict(conversion.state, strict=False)
    if answer.missing_keys or answer.unexpected_keys:
        raise UserError(
            f"{recorded.folder}: does not fit {name}: missing {answer.missing_keys[:5]}, "
            f"unexpected {answer.unexpected_keys[:5]}"
        )
    root.to(torch.float64)
    return Student(experiment=experiment, root=root, names=conversion.used)


def _training_step(recorded: RecordedDetr, student: Student, batch: Batch) -> Step:
    """One step of the real training code, forward and backward, with the recorded noise."""
    detector, schemes = student.detector, student.experiment.schemes
    student.root.train()
    decode = detector.decode
    said: dict[str, Any] = {}

    def remember(memory: Memory, groups: Sequence[QueryGroup]) -> Mapping[str, Decoded]:
        said.update(memory=memory, decoded=decode(memory, groups))
        found: Mapping[str, Decoded] = said["decoded"]
        return found

    counts = [len(t) for t in batch.targets]
    parts = {"backbone": detector.backbone, "norm": detector.decoder.norm}
    parts["last"] = detector.decoder.layers[-1]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(detector, "decode", remember))
        seen: Seen = stack.enter_context(probe(parts))
        for name, noise in NOISE.items():
            if name in schemes and max(counts) > 0:
                draws = mock.Mock(return_value=noise(recorded, counts))
                stack.enter_context(mock.patch.object(schemes[name], "draw", draws))
        losses: Losses = training_losses(detector, schemes, batch)  # type: ignore[arg-type]
    total = total_loss(losses)
    total.backward()
    return Step(
        memory=said["memory"],
        decoded=said["decoded"],
        noised=next((n for n, a in said["decoded"].items() if n in NOISE and len(a.group)), None),
        seen=seen,
        losses=losses,
        total=float(total.detach()),
    )


def _measured(student: Student, step: Step, batch: Batch) -> Iterator[Measured]:
    """Every layer that the official code measures, matched again by the schemes' own matchers."""
    one: Any = student.experiment.schemes["one_to_one"]
    count = student.detector.num_layers
    main = step.decoded[MAIN]
    matched = {"one_to_one": (main.layers, one.matcher(main.layers, batch.targets))}
    if step.noised is not None:
        answer = step.decoded[step.noised]
        assert answer.group.assignment is not None
        matched[step.noised] = (answer.layers, (answer.group.assignment,) * count)
    for scheme, (layers, pairs) in matched.items():
        for i, (layer, own) in enumerate(zip(layers, pairs, strict=True)):
            name = pattern(scheme, f"layer{i}", count)
            yield Measured(name=name, predictions=layer, pairs=own)
    if main.proposals is not None:
        (own,) = one.proposal_matcher([main.proposals], batch.targets)
        yield Measured(name="{}_interm", predictions=main.proposals, pairs=own)


@torch.no_grad()
def _matches(student: Student, step: Step, batch: Batch) -> dict[str, Tensor]:
    """``match_*``: (P, 3) image, query, and target counted from 0 in every image."""
    starts = torch.tensor([0, *(len(t) for t in batch.targets)]).cumsum(0)
    count = student.detector.num_layers
    found = {}
    names = {pattern("one_to_one", f"layer{i}", count): f"l{i}" for i in range(count)}
    names["{}_interm"] = "interm"
    for one in _measured(student, step, batch):
        if one.name not in names:
            continue
        pairs = one.pairs
        found[f"match_{names[one.name]}"] = torch.stack(
            [pairs.image, pairs.query, pairs.target - starts[pairs.image]], dim=1
        )
    return found


def _losses(recorded: RecordedDetr, student: Student, batch: Batch, step: Step) -> Iterator[Row]:
    """Raw losses and what is only logged, weights, and the total. Where no image has a box, the
    official denoising losses are zeros, and ours are not there.
    """
    count = student.detector.num_layers
    double = recorded.losses.get("float64", recorded.losses)
    ours = dict(logged(list(_measured(student, step, batch)), batch))
    own_losses = raw_losses(step.losses, count)
    ours |= own_losses
    for name, value in double["losses_unweighted"].items():
        absent = 0.0 if step.noised is None and _denoises(name) else float("nan")
        yield compare(name, ours.get(name, absent), value, LOSSES)
    own_weights, theirs = weights(step.losses, count), recorded.losses["weight_dict_used"]
    for name, value in theirs.items():
        if name in own_weights or not (step.noised is None and _denoises(name)):
            yield compare(f"weight of {name}", own_weights.get(name, 0.0), value)
    extra = {n for n in own_losses if n not in theirs and (step.noised or not _denoises(n))}
    yield compare("losses that only we have", len(extra), 0)
    yield compare("weighted total", step.total, double["weighted_total"], LOSSES)


def _denoises(name: str) -> bool:
    return any(mark in name for mark in DENOISING_LOSSES)


def _gradients(recorded: RecordedDetr, student: Student) -> Iterator[Row]:
    """L2 norms of the gradients of the weighted total."""
    squares = {
        name: 0.0 if p.grad is None else float(p.grad.square().sum())
        for name, p in student.root.named_parameters()
        if p.requires_grad
    }
    ours = dict(gradient_norms(squares, student.names))
    double = recorded.losses.get("float64", recorded.losses)
    for official, value in double["grad_norms"].items():
        yield compare(
            f"grad {official}", ours.get(recorded.short(official), -1.0), value or 0.0, GRADIENTS
        )
    everything = sum(squares.values()) ** 0.5
    yield compare("grad (all)", everything, double["grad_norm_all"], GRADIENTS)


def _parameters(recorded: RecordedDetr, root: nn.ModuleDict) -> Iterator[Row]:
    """Their number, but for rows of the table of labels that no class has."""
    unread = 0
    if "denoising" in root["schemes"]:  # type: ignore[operator]
        rows, width = recorded.shapes.get("label_enc.weight", (0, 0))
        unread = max(rows - recorded.num_classes, 0) * width
    counts = {
        "parameters": sum(p.numel() for p in root.parameters()),
        "trainable_parameters": sum(p.numel() for p in root.parameters() if p.requires_grad),
    }
    for name, number in counts.items():
        if name in recorded.keys:
            yield compare(name, number + unread, recorded.keys[name])


@torch.no_grad()
def _evaluation(
    recorded: RecordedDetr, student: Student, batch: Batch, step: Step
) -> Iterator[Row]:
    """The best detections, relative to the image first; training does not change predictions."""
    student.root.eval()
    last: Predictions = student.detector(batch.images)
    trained = step.decoded[MAIN].layers[-1]
    difference = [(a - b).abs().max() for a, b in ((last.boxes, trained.boxes),)]
    difference += [(last.logits - trained.logits).abs().max()]
    for name in ("eval_boxes_diff_to_train", "eval_minus_train_max"):
        if name in recorded.arrays:
            yield recorded.row(name, torch.stack(difference), UNDISTURBED)
    if "post_scores_0" not in recorded.arrays:
        return
    limit = len(recorded.arrays["post_scores_0"])
    yield compare("max_detections", student.experiment.postprocess.max_detections, limit)
    unit = torch.ones_like(batch.images.sizes)
    infos = [replace(info, scale=(1.0, 1.0)) for info in batch.infos]
    for b, found in enumerate(Postprocess(max_detections=limit)(last, unit, infos)):
        yield from detection_rows(recorded, b, found)
