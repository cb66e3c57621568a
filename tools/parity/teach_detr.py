"""A recorded run of Teach-DETR on H-Deformable-DETR against ours.

The losses without teachers are H-Deformable-DETR's. As with MS-DETR, the official repetition in
float64 keeps some parts in float32: numbers agree to about 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from codetr.checkpoints.h_detr import convert_h_detr
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.loss_terms import Losses, total_loss
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Decoded, Memory, Predictions, Targets
from codetr.supervision.schemes.hybrid import GROUP as HYBRID
from codetr.training.losses import training_losses
from tools.parity.detections import detection_rows
from tools.parity.experiment import Experiment, build_experiment
from tools.parity.probe import probe
from tools.parity.recorded_detr import RecordedDetr, make_batch
from tools.parity.table import EXACT, Row, Tolerance, compare
from tools.parity.teach_losses import losses_of, matched_pairs
from tools.parity.teacher_files import LOADER, check_loader

ARRAYS = Tolerance(absolute=1e-5, relative=1e-5)
LOSSES = Tolerance(absolute=1e-8, relative=1e-6)
GRADIENTS = Tolerance(absolute=1e-9, relative=5e-5)
SINGLE = Tolerance(relative=1e-4)
"""Of gradient norms that are recorded in float32 alone."""

TEACHER = "teacher"


@dataclass(frozen=True, kw_only=True)
class Model:
    """An experiment with the recorded weights, in float64; ``names`` are ours by the official
    ones (several joined by ", ").
    """

    experiment: Experiment
    root: nn.ModuleDict
    names: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one training step made. ``chosen`` (B, Q) are the indices of the main proposals."""

    memory: Memory
    decoded: Mapping[str, Decoded]
    chosen: Tensor
    losses: Losses
    total: float


def check_teach_detr(folder: Path) -> list[Row]:
    """Every recorded quantity against ours, in float64."""
    recorded = RecordedDetr.load(folder)
    model = _model(recorded)
    batch = with_teachers(recorded)
    rows = list(_inputs(recorded, batch))
    if batch.teachers:
        step = _training_step(model, batch)
        rows += _values(recorded, model, batch, step)
        rows += _measured(recorded, model, batch, step, "with_teacher")
        plain = replace(batch, teachers=())
        del model.experiment.schemes[TEACHER]
        step = _training_step(model, plain)
    else:
        plain, step = batch, _training_step(model, batch)
        rows += _values(recorded, model, batch, step)
    rows += _measured(recorded, model, plain, step, "without_teacher")
    rows += _parameters(recorded, model.root)
    rows += _detections(recorded, model.experiment, batch)
    if (folder / LOADER).is_file():
        rows += check_loader(folder, recorded)
    return rows


def _model(recorded: RecordedDetr) -> Model:
    """Strictly loaded. Raises UserError if a key is left over or missing."""
    shape = recorded.shapes.get("query_embed.weight", (0,))
    base = build_experiment(recorded.experiment, recorded.num_classes)
    queries = int(base.cfg.model.num_queries)
    conversion = convert_h_detr(recorded.state(), queries)
    root = nn.ModuleDict({"detector": base.detector, "schemes": base.schemes})
    if conversion.unused:
        raise UserError(f"{recorded.folder}: no rule knows {', '.join(conversion.unused[:5])}")
    hybrid: Any = base.schemes["hybrid"]
    held = hybrid.queries.num_queries
    if shape[0] != queries + held:
        raise UserError(
            f"{recorded.folder}: has {shape[0]} queries, {recorded.experiment} {queries} + {held}: "
            "name the experiment of the recorded run in info.json"
        )
    answer = root.load_state_dict(conversion.state, strict=False)
    if answer.missing_keys or answer.unexpected_keys:
        raise UserError(
            f"{recorded.folder}: does not fit {recorded.experiment}: missing "
            f"{answer.missing_keys[:5]}, unexpected {answer.unexpected_keys[:5]}"
        )
    for module in root.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0  # as in the recorded run
    root.to(torch.float64)
    return Model(experiment=base, root=root, names=conversion.used)


def with_teachers(recorded: RecordedDetr) -> Batch:
    """The recorded inputs, with the teachers' boxes that the recorded losses saw, if any."""
    batch = make_batch(recorded.inputs())
    if "target_ext_boxes_0" not in recorded.arrays:
        return batch
    found = tuple(
        Targets(
            boxes=_array(recorded, f"target_ext_boxes_{b}").double(),
            labels=_array(recorded, f"target_ext_labels_{b}"),
            weights=_array(recorded, f"target_ext_scores_{b}").double(),
            size=own.size,
        )
        for b, own in enumerate(batch.targets)
    )
    return replace(batch, teachers=(found,))


def _array(recorded: RecordedDetr, name: str) -> Tensor:
    return torch.from_numpy(recorded.arrays[name])


def _inputs(recorded: RecordedDetr, batch: Batch) -> Iterator[Row]:
    inputs = recorded.inputs()
    yield recorded.row("image_first", inputs.pixels[:, :, :2, :8])
    for b, (boxes, labels) in enumerate(zip(inputs.relative, inputs.labels, strict=True)):
        yield recorded.row(f"target_boxes_{b}", boxes, Tolerance(absolute=1e-6))
        yield recorded.row(f"target_labels_{b}", labels)


def _training_step(model: Model, batch: Batch) -> Step:
    """One step of the real training code, forward and backward, from clean gradients."""
    detector: Any = model.experiment.detector
    model.root.train()
    model.root.zero_grad(set_to_none=True)
    stage, decode = detector.query_init.stage, detector.decode
    answers: dict[str, Any] = {}

    def remember(memory: Memory, groups: Any) -> Mapping[str, Decoded]:
        answers["memory"], answers["decoded"] = memory, decode(memory, groups)
        found: Mapping[str, Decoded] = answers["decoded"]
        return found

    with probe({"stage": stage}) as seen, mock.patch.object(detector, "decode", remember):
        schemes: Any = model.experiment.schemes
        losses = training_losses(detector, schemes, batch)
    total = total_loss(losses)
    total.backward()
    return Step(
        memory=answers["memory"],
        decoded=answers["decoded"],
        chosen=seen.outputs["stage"][0][1],
        losses=losses,
        total=float(total.detach()),
    )


@torch.no_grad()
def _values(recorded: RecordedDetr, model: Model, batch: Batch, step: Step) -> Iterator[Row]:
    """Encoder, selection, both groups' predictions, and who was matched with whom."""
    detector: Any = model.experiment.detector
    proposals: Any = step.decoded[MAIN].proposals
    image = ~step.memory.padding[..., None]  # padded tokens are chaotic in float32
    yield recorded.row("encoder_memory", step.memory.tokens, ARRAYS, image)
    yield recorded.row("enc_logits_channel0", proposals.logits[..., 0], ARRAYS)
    yield recorded.row("enc_logits", proposals.logits, ARRAYS)
    yield recorded.row("enc_boxes", proposals.boxes, ARRAYS)
    best = _array(recorded, "topk_index").long()
    yield compare("topk_index", step.chosen, best[:, : step.chosen.shape[1]])
    hybrid = step.decoded[HYBRID].group.queries.anchors
    theirs = proposals.boxes.gather(1, best[..., None].expand(-1, -1, 4))
    joint = torch.cat([step.decoded[MAIN].group.queries.anchors, hybrid], dim=1)
    yield compare("topk_index (anchors of both groups)", joint, theirs, Tolerance(absolute=1e-12))
    for group, name in ((MAIN, "one2one"), (HYBRID, "one2many")):
        layers = step.decoded[group].layers
        yield recorded.row(f"{name}_boxes", torch.stack([p.boxes for p in layers]), ARRAYS)
        for i in range(detector.num_layers):
            yield recorded.row(f"{name}_logits_l{i}", layers[i].logits, ARRAYS)
    for name, ours in matched_pairs(model.experiment.schemes, step.decoded, batch).items():
        theirs = recorded.arrays[name]
        if "one2many" in name:  # copies of a target have equal cost: which is taken is arbitrary
            own = torch.tensor([len(t) for t in batch.targets])
            ours = _modulo(ours, own)
            theirs = _modulo(torch.from_numpy(theirs).long(), own).numpy()
        yield compare(name, ours, theirs, EXACT)


def _modulo(pairs: Tensor, counts: Tensor) -> Tensor:
    """(P, 3) image, query and target, the last one modulo the number of the image's targets."""
    return torch.cat([pairs[:, :2], (pairs[:, 2] % counts[pairs[:, 0]])[:, None]], dim=1)


def _measured(
    recorded: RecordedDetr, model: Model, batch: Batch, step: Step, kind: str
) -> Iterator[Row]:
    """Raw losses and what is only logged, weights, the total, gradient norms."""
    content = recorded.losses
    double = content.get("float64", {})
    theirs = double.get(f"losses_{kind}", content[f"losses_{kind}"])
    ours, constant = losses_of(model.experiment, step.decoded, step.losses, batch)
    for name, value in theirs.items():
        yield compare(f"{name} {kind}", ours.get(name, float("nan")), value, LOSSES)
    extra = [name for name in ours if name not in theirs]
    yield compare(f"losses that only we have {kind}", len(extra), 0)
    total = double.get(f"weighted_total_{kind}", content[f"weighted_total_{kind}"])
    yield compare(f"weighted total {kind}", step.total + constant, total, LOSSES)
    yield from _gradients(recorded, model, kind)


def _gradients(recorded: RecordedDetr, model: Model, kind: str) -> Iterator[Row]:
    squares = {
        name: 0.0 if p.grad is None else float(p.grad.square().sum())
        for name, p in model.root.named_parameters()
        if p.requires_grad
    }
    double = recorded.losses.get("float64", {})
    norms = double.get(f"grad_norms_{kind}", recorded.losses[f"grad_norms_{kind}"])
    for official, value in norms.items():
        own = sum(squares[name] for name in model.names[official].split(", ")) ** 0.5
        yield compare(f"grad {official} {kind}", own, value, GRADIENTS)
    everything = sum(squares.values()) ** 0.5
    recorded_all = recorded.losses[f"grad_norm_all_{kind}"]
    yield compare(f"grad (all) {kind}", everything, recorded_all, SINGLE)


def _parameters(recorded: RecordedDetr, root: nn.Module) -> Iterator[Row]:
    count = sum(p.numel() for p in root.parameters())
    learned = sum(p.numel() for p in root.parameters() if p.requires_grad)
    yield compare("parameters", count, recorded.keys["parameters"])
    yield compare("trainable parameters", learned, recorded.keys["trainable_parameters"])


@torch.no_grad()
def _detections(recorded: RecordedDetr, experiment: Experiment, batch: Batch) -> list[Row]:
    """The recorded number of best detections of an evaluation, relative to the image first."""
    experiment.detector.eval()
    last: Predictions = experiment.detector(batch.images)
    unit = torch.ones_like(batch.images.sizes)
    limit = len(recorded.arrays["post_scores_0"])
    infos = [replace(info, scale=(1.0, 1.0)) for info in batch.infos]
    rows: list[Row] = []
    for b, found in enumerate(Postprocess(max_detections=limit)(last, unit, infos)):
        rows += detection_rows(recorded, b, found)
    return rows
