"""A recorded run of Teach-DETR on H-Deformable-DETR against ours.

The losses without teachers are H-Deformable-DETR's. As with MS-DETR, the official repetition in
float64 keeps some parts in float32: numbers agree to about 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr.checkpoints.h_detr import convert_h_detr
from codetr.checkpoints.official import Conversion
from codetr.errors import UserError
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Targets
from codetr.supervision.schemes.hybrid import GROUP as HYBRID
from tools.parity.detr_run import (
    Model,
    Step,
    best_detections,
    evaluated,
    gradient_rows,
    load_model,
    parameter_rows,
    training_step,
)
from tools.parity.experiment import Experiment
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


def check_teach_detr(folder: Path) -> list[Row]:
    """Every recorded quantity against ours, in float64."""
    recorded = RecordedDetr.load(folder)
    model = load_model(recorded, lambda state, made: _convert(recorded, state, made))
    watched = {"stage": model.detector.query_init.stage}
    batch = with_teachers(recorded)
    rows = list(_inputs(recorded, batch))
    if batch.teachers:
        step = training_step(model, batch, watched)
        rows += _values(recorded, model, batch, step)
        rows += _measured(recorded, model, batch, step, "with_teacher")
        plain = replace(batch, teachers=())
        del model.schemes[TEACHER]
        step = training_step(model, plain, watched)
    else:
        plain, step = batch, training_step(model, batch, watched)
        rows += _values(recorded, model, batch, step)
    rows += _measured(recorded, model, plain, step, "without_teacher")
    rows += parameter_rows(recorded, model.root)
    limit = len(recorded.arrays["post_scores_0"])
    rows += best_detections(recorded, evaluated(model, batch), batch, limit)
    if (folder / LOADER).is_file():
        rows += check_loader(folder, recorded)
    return rows


def _convert(
    recorded: RecordedDetr, official: Mapping[str, Tensor], experiment: Experiment
) -> Conversion:
    """Raises UserError where the experiment has another number of queries."""
    hybrid: Any = experiment.schemes["hybrid"]
    queries, held = int(experiment.cfg.model.num_queries), hybrid.queries.num_queries
    number = recorded.shapes.get("query_embed.weight", (0,))[0]
    if number != queries + held:
        raise UserError(
            f"{recorded.folder}: has {number} queries, {recorded.experiment} {queries} + {held}: "
            "name the experiment of the recorded run in info.json"
        )
    return convert_h_detr(official, queries)


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


@torch.no_grad()
def _values(recorded: RecordedDetr, model: Model, batch: Batch, step: Step) -> Iterator[Row]:
    """Encoder, selection, both groups' predictions, and who was matched with whom."""
    proposals: Any = step.main.proposals
    chosen = step.seen.outputs["stage"][0][1]
    image = ~step.memory.padding[..., None]  # padded tokens are chaotic in float32
    yield recorded.row("encoder_memory", step.memory.tokens, ARRAYS, image)
    yield recorded.row("enc_logits_channel0", proposals.logits[..., 0], ARRAYS)
    yield recorded.row("enc_logits", proposals.logits, ARRAYS)
    yield recorded.row("enc_boxes", proposals.boxes, ARRAYS)
    best = _array(recorded, "topk_index").long()
    yield compare("topk_index", chosen, best[:, : chosen.shape[1]])
    hybrid = step.decoded[HYBRID].group.queries.anchors
    theirs = proposals.boxes.gather(1, best[..., None].expand(-1, -1, 4))
    joint = torch.cat([step.main.group.queries.anchors, hybrid], dim=1)
    yield compare("topk_index (anchors of both groups)", joint, theirs, Tolerance(absolute=1e-12))
    for group, name in ((MAIN, "one2one"), (HYBRID, "one2many")):
        layers = step.decoded[group].layers
        yield recorded.row(f"{name}_boxes", torch.stack([p.boxes for p in layers]), ARRAYS)
        for i in range(model.detector.num_layers):
            yield recorded.row(f"{name}_logits_l{i}", layers[i].logits, ARRAYS)
    for name, ours in matched_pairs(model.schemes, step.decoded, batch).items():
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
    norms = double.get(f"grad_norms_{kind}", content[f"grad_norms_{kind}"])
    everything = (content[f"grad_norm_all_{kind}"], SINGLE)
    yield from gradient_rows(recorded, model, norms, everything, GRADIENTS, f" {kind}")
