"""A recorded run of Teach-DETR on H-Deformable-DETR against ours.

The losses without teachers are H-Deformable-DETR's. As with MS-DETR, the official repetition in
float64 keeps some parts in float32: numbers agree to about 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from codetr.checkpoints.h_detr import convert_h_detr
from codetr.checkpoints.renaming import Conversion
from codetr.errors import UserError
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Targets
from codetr.supervision.schemes.hybrid import GROUP as HYBRID
from tools.parity.case import Case
from tools.parity.detections import best_detections
from tools.parity.detr import load_still, parameter_rows
from tools.parity.measured import Measured, layered, logged, matches, official_loss, pattern
from tools.parity.recorded import Recorded
from tools.parity.step import Step, evaluated, gradient_rows, training_step
from tools.parity.table import EXACT, Row, Tolerance, compare
from tools.parity.teacher_files import LOADER, check_loader

ARRAYS = Tolerance(absolute=1e-5, relative=1e-5)
LOSSES = Tolerance(absolute=1e-8, relative=1e-6)
GRADIENTS = Tolerance(absolute=1e-9, relative=5e-5)
SINGLE = Tolerance(relative=1e-4)
"""Of gradient norms that are recorded in float32 alone."""

TEACHER = "teacher"
MATCHINGS = {"one_to_one": "one2one", "hybrid": "one2many", TEACHER: TEACHER}


def check_teach_detr(recorded: Recorded) -> list[Row]:
    """Every recorded quantity against ours, in float64."""
    case = load_still(recorded, lambda state, cfg: _convert(recorded, state, cfg))
    case = replace(case, batch=with_teachers(recorded, case.batch))
    rows = list(_inputs(recorded))
    watched = {"stage": case.detector.query_init.stage}
    step = training_step(case, watched)
    rows += _values(case, step)
    if case.batch.teachers:
        rows += _measured_rows(case, step, "with_teacher")
        del case.schemes[TEACHER]
        case = replace(case, batch=replace(case.batch, teachers=()))
        step = training_step(case, watched)
    rows += _measured_rows(case, step, "without_teacher")
    rows += parameter_rows(case)
    limit = len(recorded.arrays["post_scores_0"])
    rows += best_detections(recorded, evaluated(case), case.batch, limit)
    if (recorded.folder / LOADER).is_file():
        rows += check_loader(recorded)
    return rows


def _convert(recorded: Recorded, official: Mapping[str, Tensor], cfg: DictConfig) -> Conversion:
    """Raises UserError where the experiment has another number of queries."""
    queries, held = int(cfg.model.num_queries), int(cfg.scheme.hybrid.queries.num_queries)
    number = recorded.shapes.get("query_embed.weight", (0,))[0]
    if number != queries + held:
        raise UserError(
            f"{recorded.folder}: has {number} queries, {recorded.experiment} {queries} + {held}: "
            "name the experiment of the recorded run in info.json"
        )
    return convert_h_detr(official, queries)


def with_teachers(recorded: Recorded, batch: Batch) -> Batch:
    """The recorded inputs, with the teachers' boxes that the recorded losses saw, if any."""
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


def _array(recorded: Recorded, name: str) -> Tensor:
    return torch.from_numpy(recorded.arrays[name])


def _inputs(recorded: Recorded) -> Iterator[Row]:
    inputs = recorded.inputs()
    assert inputs.relative is not None
    yield recorded.row("image_first", inputs.pixels[:, :, :2, :8])
    for b, (boxes, labels) in enumerate(zip(inputs.relative, inputs.labels, strict=True)):
        yield recorded.row(f"target_boxes_{b}", boxes, Tolerance(absolute=1e-6))
        yield recorded.row(f"target_labels_{b}", labels)


@torch.no_grad()
def _values(case: Case, step: Step) -> Iterator[Row]:
    """Encoder, selection, both groups' predictions, and who was matched with whom."""
    recorded = case.recorded
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
        for i, layer in enumerate(layers):
            yield recorded.row(f"{name}_logits_l{i}", layer.logits, ARRAYS)
    for name, ours in matches(_measured(case, step)).items():
        theirs = recorded.arrays[name]
        if "one2many" in name:  # copies of a target have equal cost: which is taken is arbitrary
            own = torch.tensor([len(t) for t in case.batch.targets])
            ours = _modulo(ours, own)
            theirs = _modulo(torch.from_numpy(theirs).long(), own).numpy()
        yield compare(name, ours, theirs, EXACT)


def _modulo(pairs: Tensor, counts: Tensor) -> Tensor:
    """(P, 3) image, query and target, the last one modulo the number of the image's targets."""
    return torch.cat([pairs[:, :2], (pairs[:, 2] % counts[pairs[:, 0]])[:, None]], dim=1)


def _measured(case: Case, step: Step) -> Iterator[Measured]:
    """Every matching of a training step, made again by the schemes' own matchers."""
    batch, decoded = case.batch, step.decoded
    supervision = {"one_to_one": (MAIN, batch.targets)}
    supervision["hybrid"] = (HYBRID, decoded[HYBRID].group.targets)
    if batch.teachers:
        supervision[TEACHER] = (MAIN, batch.teachers[0])
    for scheme, (group, targets) in supervision.items():
        matcher, answer = case.schemes[scheme].matcher, decoded[group]
        match = f"match_{MATCHINGS[scheme]}_"
        pairs = matcher(answer.layers, targets)
        yield from layered(scheme, answer.layers, pairs, targets, match + "l{}")
        if answer.proposals is not None:
            plain = [replace(t, labels=torch.zeros_like(t.labels)) for t in targets]
            (own,) = matcher([answer.proposals], plain)
            yield Measured(
                name=pattern(scheme, "encoder", len(answer.layers)),
                match=match + "enc",
                predictions=answer.proposals,
                pairs=own,
                targets=plain,
            )


def _measured_rows(case: Case, step: Step, kind: str) -> Iterator[Row]:
    """Raw losses and what is only logged, weights, the total, gradient norms."""
    content = case.recorded.losses
    double = content.get("float64", {})
    theirs = double.get(f"losses_{kind}", content[f"losses_{kind}"])
    ours, constant = _losses(case.batch, step)
    seen = ours | dict(logged(_measured(case, step)))
    for name, value in theirs.items():
        yield compare(f"{name} {kind}", seen.get(name, float("nan")), value, LOSSES)
    extra = [name for name in ours if name not in theirs]
    yield compare(f"losses that only we have {kind}", len(extra), 0)
    total = double.get(f"weighted_total_{kind}", content[f"weighted_total_{kind}"])
    yield compare(f"weighted total {kind}", step.total + constant, total, LOSSES)
    norms = double.get(f"grad_norms_{kind}", content[f"grad_norms_{kind}"])
    everything = (content[f"grad_norm_all_{kind}"], SINGLE)
    yield from gradient_rows(case, norms, everything, GRADIENTS, f" {kind}")


def _losses(batch: Batch, step: Step) -> tuple[dict[str, float], float]:
    """Raw losses under the official names; and what our total lacks.

    The official GIoU loss of a teacher's box of score s is 1 - s GIoU, ours s (1 - GIoU): the mean
    of 1 - s is added here. It has no gradient.
    """
    layers = len(step.main.layers)
    found = {official_loss(n, layers): float(t.value.detach()) for n, t in step.losses.items()}
    lacking = 0.0
    if batch.teachers:
        scores = torch.cat([t.weights for t in batch.teachers[0]])
        gap = float((1 - scores).mean())
        for name in [n for n in found if n.startswith("loss_giou") and n.endswith("_ensemble")]:
            if "_enc" not in name:
                found[name] += gap
                lacking += gap * step.losses["teacher/0/layer0/giou"].weight
    return found, lacking
