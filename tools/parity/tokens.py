"""A recorded run of YOLOS or ViDT against ours, in float64: one training step, one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from codetr.checkpoints.official import Conversion
from codetr.checkpoints.vidt import convert_vidt
from codetr.checkpoints.yolos import convert_yolos
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.loss_terms import Losses, total_loss
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Decoded, Memory, Predictions
from codetr.training.losses import training_losses
from tools.parity.detections import detection_rows
from tools.parity.experiment import Experiment, build_experiment
from tools.parity.ms_losses import logged_errors, official_loss
from tools.parity.probe import Seen, probe
from tools.parity.recorded_detr import RecordedDetr, input_values, make_batch
from tools.parity.table import EXACT, Row, Tolerance, compare

ARRAYS = Tolerance(absolute=1e-5, relative=1e-7)
BOXES = Tolerance(absolute=1e-6)
INPUTS = Tolerance(relative=1e-6)
LOSSES = Tolerance(relative=1e-9)
GRADIENTS = Tolerance(absolute=1e-9, relative=1e-7)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one training step made. ``seen`` holds what the family's parts took and gave."""

    memory: Memory
    decoded: Decoded
    seen: Seen
    losses: Losses
    total: float


@dataclass(frozen=True, kw_only=True)
class Family:
    """``watched``: the parts to look into, of a detector; ``values``: what the family records, by
    its names, from them.
    """

    convert: Callable[[Mapping[str, Tensor]], Conversion]
    watched: Callable[[Any], dict[str, nn.Module]]
    values: Callable[[Step], dict[str, Tensor]]


def check_tokens(folder: Path) -> list[Row]:
    """Every recorded quantity against ours. A folder may record fewer than the published one."""
    recorded = RecordedDetr.load(folder)
    family = next(f for name, f in FAMILIES.items() if name in recorded.experiment)
    conversion = family.convert(recorded.state())
    experiment, root = _model(recorded, conversion)
    inputs = recorded.inputs()
    batch = make_batch(inputs)
    step = _training_step(experiment, root, batch, family)
    pairs = _matched(experiment, step, batch)
    rows = [
        recorded.row(name, v, INPUTS) for name, v in input_values(inputs) if name in recorded.arrays
    ]
    values = _answers(step) | family.values(step) | _matches(pairs, batch)
    last: Predictions = _evaluated(experiment, batch)
    trained = step.decoded.layers[-1]
    values["eval_minus_train_max"] = torch.stack(
        [(getattr(last, n) - getattr(trained, n)).abs().max() for n in ("boxes", "logits")]
    )
    rows += [
        recorded.row(name, value, _tolerance(name))
        for name, value in values.items()
        if name in recorded.arrays
    ]
    if recorded.losses:
        rows += _losses(recorded, step, pairs, batch)
        rows += _gradients(recorded, root, conversion)
    rows += _parameters(recorded, root, conversion)
    rows += _detections(recorded, experiment, batch, last)
    return rows


def _tolerance(name: str) -> Tolerance:
    if name.startswith(("match", "mask_")):
        return EXACT
    return BOXES if name == "boxes" or "reference" in name else ARRAYS


def _model(recorded: RecordedDetr, conversion: Conversion) -> tuple[Experiment, nn.ModuleDict]:
    """The experiment in float64 with the official weights, strictly, and no randomness: the
    recorded runs drop nothing. Raises UserError if a key is left over or missing.
    """
    name = recorded.experiment
    experiment = build_experiment(name, recorded.num_classes)
    root = nn.ModuleDict({"detector": experiment.detector, "schemes": experiment.schemes})
    if conversion.unused:
        raise UserError(f"{recorded.folder}: no rule knows {', '.join(conversion.unused[:5])}")
    answer = root.load_state_dict(conversion.state, strict=False)
    if answer.missing_keys or answer.unexpected_keys:
        raise UserError(
            f"{recorded.folder}: does not fit {name}: missing {answer.missing_keys[:5]}, "
            f"unexpected {answer.unexpected_keys[:5]}"
        )
    for module in root.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    root.to(torch.float64)
    return experiment, root


def _training_step(
    experiment: Experiment, root: nn.ModuleDict, batch: Batch, family: Family
) -> Step:
    """One step of the real training code, forward and backward."""
    detector: Any = experiment.detector
    schemes: Any = experiment.schemes
    root.train()
    decode = detector.decode
    said: dict[str, Any] = {}

    def remember(memory: Memory, groups: Any) -> Mapping[str, Decoded]:
        said["memory"], said["decoded"] = memory, decode(memory, groups)
        found: Mapping[str, Decoded] = said["decoded"]
        return found

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(detector, "decode", remember))
        seen = stack.enter_context(probe(family.watched(detector)))
        losses = training_losses(detector, schemes, batch)
    total = total_loss(losses)
    total.backward()
    return Step(
        memory=said["memory"],
        decoded=said["decoded"][MAIN],
        seen=seen,
        losses=losses,
        total=float(total.detach()),
    )


def _answers(step: Step) -> dict[str, Tensor]:
    """Predictions; those of a detector with one answer are recorded without the layers' axis."""
    layers = step.decoded.layers
    if len(layers) == 1:
        return {"boxes": layers[0].boxes, "logits": layers[0].logits}
    logits = {f"logits_l{i}": layer.logits for i, layer in enumerate(layers)}
    return {"boxes": torch.stack([layer.boxes for layer in layers]), **logits}


def _of_yolos(step: Step) -> dict[str, Tensor]:
    given, made = step.seen.inputs, step.seen.outputs
    return {
        "patch": made["patches"][0].flatten(1, 2),
        "block0_in": given["first"][0][0],
        "block0_out": made["first"][0],
        "block11_in": given["last"][0][0],
        "block11_out": made["last"][0],
        "final": made["norm"][0],
    }


def _of_vidt(step: Step) -> dict[str, Tensor]:
    pyramid, queries = step.seen.outputs["backbone"][0], step.decoded.group.queries
    assert queries.position is not None
    hidden = [queries.content, *(made.content for made in _layers(step))]
    masks = step.memory.padding.split([h * w for h, w in step.memory.shapes], dim=1)
    return {
        **{f"patch_{i}": made for i, made in enumerate(pyramid.maps)},
        **{f"stage{i}_det": step.seen.outputs[f"stage{i}"][0][1] for i in range(4)},
        "det_projected": queries.content,
        "query_pos": queries.position[:1],  # the same for all images
        **{
            f"mask_{i}": mask.unflatten(1, shape)
            for i, (mask, shape) in enumerate(zip(masks, step.memory.shapes, strict=True))
        },
        "init_reference": queries.anchors,
        "inter_references": torch.stack([layer.boxes for layer in step.decoded.layers]),
        "decoder_hidden": torch.stack(hidden),
    }


def _layers(step: Step) -> Iterator[Any]:
    """What the decoder's layers gave."""
    number = 0
    while made := step.seen.outputs.get(f"layer{number}"):
        yield made[0]
        number += 1


FAMILIES = {
    "yolos": Family(
        convert=convert_yolos,
        watched=lambda detector: {
            "patches": detector.backbone.body.patch_embed,
            "first": detector.backbone.body.blocks[0],
            "last": detector.backbone.body.blocks[-1],
            "norm": detector.backbone.body.norm,
        },
        values=_of_yolos,
    ),
    "vidt": Family(
        convert=convert_vidt,
        watched=lambda detector: {
            "backbone": detector.backbone,
            **{f"stage{i}": part[-1] for i, part in enumerate(detector.backbone.attention)},
            **{f"layer{i}": part for i, part in enumerate(detector.decoder.decoder.layers)},
        },
        values=_of_vidt,
    ),
}
"""By a part of the experiment's name."""


def _matched(experiment: Experiment, step: Step, batch: Batch) -> Sequence[Any]:
    """Every layer's assignment."""
    one: Any = experiment.schemes["one_to_one"]
    pairs: Sequence[Any] = one.matcher(step.decoded.layers, batch.targets)
    return pairs


def _matches(pairs: Sequence[Any], batch: Batch) -> dict[str, Tensor]:
    """(P, 3) image, query, and target counted from 0 in every image."""
    starts = torch.tensor([0, *(len(t) for t in batch.targets)]).cumsum(0)
    names = ["match"] if len(pairs) == 1 else [f"match_l{i}" for i in range(len(pairs))]
    return {
        name: torch.stack([own.image, own.query, own.target - starts[own.image]], dim=1)
        for name, own in zip(names, pairs, strict=True)
    }


def _losses(
    recorded: RecordedDetr, step: Step, pairs: Sequence[Any], batch: Batch
) -> Iterator[Row]:
    """Raw losses and what is only logged, weights, and the total."""
    layers = step.decoded.layers
    ours = {official_loss(name, len(layers)): term for name, term in step.losses.items()}
    raw = {name: float(term.value.detach()) for name, term in ours.items()}
    raw |= logged_errors({"o2o": (layers, pairs)}, batch)
    double = recorded.losses.get("float64", recorded.losses)
    weights = recorded.losses["weight_dict_used"]
    for name, value in double["losses_unweighted"].items():
        yield compare(name, raw.get(name, float("nan")), value, LOSSES)
    for name, value in weights.items():
        yield compare(f"weight of {name}", ours[name].weight if name in ours else 0.0, value)
    yield compare("losses that only we have", len(set(ours) - set(weights)), 0)
    yield compare("weighted total", step.total, double["weighted_total"], LOSSES)


def _gradients(recorded: RecordedDetr, root: nn.Module, conversion: Conversion) -> Iterator[Row]:
    """L2 norms of the gradients of the weighted total. What has none there is what we leave out."""
    norms = {n: float(p.grad.norm()) for n, p in root.named_parameters() if p.grad is not None}
    double = recorded.losses.get("float64", recorded.losses)
    none = {name for name, value in double["grad_norms"].items() if value is None}
    yield compare("parameters left out", len(none ^ set(conversion.dropped)), 0)
    for official, value in double["grad_norms"].items():
        if value is not None:
            own = norms.get(conversion.used.get(_short(recorded, official), ""), -1.0)
            yield compare(f"grad {official}", own, value, GRADIENTS)
    everything = sum(norm**2 for norm in norms.values()) ** 0.5
    yield compare("grad (all)", everything, double["grad_norm_all"], GRADIENTS)


def _short(recorded: RecordedDetr, official: str) -> str:
    """The name under which a tensor with several is kept."""
    aliases: Mapping[str, str] = recorded.keys.get("alias_keys", {})
    begun = next((long for long in aliases if official.startswith(long)), "")
    return aliases.get(begun, "") + official.removeprefix(begun)


def _parameters(recorded: RecordedDetr, root: nn.Module, conversion: Conversion) -> Iterator[Row]:
    """Their number, with those that we leave out."""
    shapes = recorded.shapes
    left_out = sum(torch.Size(shapes[name]).numel() for name in conversion.dropped)
    counts = {
        "parameters": sum(p.numel() for p in root.parameters()),
        "trainable_parameters": sum(p.numel() for p in root.parameters() if p.requires_grad),
    }
    for name, count in counts.items():
        if name in recorded.keys:
            yield compare(name, count + left_out, recorded.keys[name])


@torch.no_grad()
def _evaluated(experiment: Experiment, batch: Batch) -> Predictions:
    experiment.detector.eval()
    last: Predictions = experiment.detector(batch.images)
    return last


def _detections(
    recorded: RecordedDetr, experiment: Experiment, batch: Batch, last: Predictions
) -> Iterator[Row]:
    """The detections of an evaluation, as many as the experiment keeps, relative to the image
    first.
    """
    if "post_scores_0" not in recorded.arrays:
        return
    limit = len(recorded.arrays["post_scores_0"])
    yield compare("detections kept", experiment.postprocess.max_detections, limit)
    unit = torch.ones_like(batch.images.sizes)
    infos = [replace(info, scale=(1.0, 1.0)) for info in batch.infos]
    for b, found in enumerate(Postprocess(max_detections=limit)(last, unit, infos)):
        yield from detection_rows(recorded, b, found)
