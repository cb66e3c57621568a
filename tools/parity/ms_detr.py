"""A recorded run of MS-DETR against ours: one training step, one evaluation, the matcher alone.

The official repetition in float64 keeps position codes and valid ratios in float32, so numbers
agree to about 1e-6, not to the last digits; at padded tokens, where a position's angle can be -3e6,
the memory is not compared. (Nothing reads it there.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from codetr.checkpoints.ms_detr import convert_ms_detr, rename
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.loss_terms import Losses, total_loss
from codetr.models.detectors.protocol import MAIN
from codetr.structures import CROSS_ATTENTION, Assignment, Batch, Decoded, Memory, Predictions
from codetr.training.losses import training_losses
from tools.parity.detections import detection_rows
from tools.parity.experiment import Experiment, build_experiment
from tools.parity.ms_losses import Answers, logged_errors, official_loss
from tools.parity.probe import probe
from tools.parity.recorded_detr import RecordedDetr, input_values, make_batch
from tools.parity.table import EXACT, Row, Tolerance, compare
from tools.parity.top_k import FILE, check_matcher

ARRAYS = Tolerance(absolute=1e-5, relative=1e-5)
LOSSES = Tolerance(absolute=1e-8, relative=1e-6)
GRADIENTS = Tolerance(absolute=1e-9, relative=1e-4)
INPUTS = Tolerance(relative=1e-6)

WHOLE_NUMBERS = ("topk_index", "match_")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one training step made: see ``training_losses``. ``chosen`` (B, Q) are the indices of
    the selected proposals.
    """

    memory: Memory
    decoded: Mapping[str, Decoded]
    chosen: Tensor
    losses: Losses
    total: float


def check_ms_detr(folder: Path) -> list[Row]:
    """Every recorded quantity against ours, in float64. A folder may record fewer than the
    published one.
    """
    recorded = RecordedDetr.load(folder)
    experiment, root = _model(recorded)
    inputs = recorded.inputs()
    batch = make_batch(inputs)
    step = _training_step(recorded, experiment, batch)
    rows = [
        recorded.row(name, v, INPUTS) for name, v in input_values(inputs) if name in recorded.arrays
    ]
    shown = {"encoder_memory": ~step.memory.padding[..., None]}
    rows += [
        recorded.row(name, value, _tolerance(name), shown.get(name))
        for name, value in _values(experiment, batch, step).items()
        if name in recorded.arrays
    ]
    if recorded.losses:
        rows += _losses(recorded, experiment, batch, step)
        rows += _gradients(recorded, root)
    rows += _parameters(recorded, root)
    rows += _detections(recorded, experiment, batch)
    if (folder / FILE).is_file():
        mixed: Any = experiment.schemes["mixed"]
        rows += check_matcher(folder, mixed.assigner)
    return rows


def _tolerance(name: str) -> Tolerance:
    return EXACT if name.startswith(WHOLE_NUMBERS) else ARRAYS


def _model(recorded: RecordedDetr) -> tuple[Experiment, nn.ModuleDict]:
    """The experiment in float64 with the official weights, without the dropout of its recipe.

    Raises UserError if a key is left over or missing.
    """
    name = recorded.experiment
    experiment = build_experiment(name, recorded.num_classes, ["model.dropout=0.0"])
    root = nn.ModuleDict({"detector": experiment.detector, "schemes": experiment.schemes})
    conversion = convert_ms_detr(recorded.state())
    if conversion.unused:
        raise UserError(f"{recorded.folder}: no rule knows {', '.join(conversion.unused[:5])}")
    answer = root.load_state_dict(conversion.state, strict=False)
    if answer.missing_keys or answer.unexpected_keys:
        raise UserError(
            f"{recorded.folder}: does not fit {name}: missing {answer.missing_keys[:5]}, "
            f"unexpected {answer.unexpected_keys[:5]}"
        )
    root.to(torch.float64)
    return experiment, root


def _selection(recorded: RecordedDetr, experiment: Experiment) -> AbstractContextManager[Any]:
    """Our selection of proposals; the recorded one where the folder says that scores are so near
    each other that the official one is another in float64.
    """
    said = recorded.losses.get("float32_vs_float64", {})
    if said.get("topk_order_same_in_float64", True):
        return nullcontext()
    detector: Any = experiment.detector
    indices = torch.from_numpy(recorded.arrays["topk_index"].astype(np.int64))
    return mock.patch.object(detector.query_init.stage, "select", return_value=indices)


def _training_step(recorded: RecordedDetr, experiment: Experiment, batch: Batch) -> Step:
    """One step of the real training code, forward and backward."""
    detector: Any = experiment.detector
    schemes: Any = experiment.schemes
    detector.train()
    schemes.train()
    stage, decode = detector.query_init.stage, detector.decode
    seen_memory: list[Memory] = []
    answers: dict[str, Decoded] = {}

    def remember(memory: Memory, groups: Any) -> Mapping[str, Decoded]:
        seen_memory.append(memory)
        answers.update(decode(memory, groups))
        return answers

    with (
        _selection(recorded, experiment),
        probe({"stage": stage}) as seen,
        mock.patch.object(detector, "decode", remember),
    ):
        losses = training_losses(detector, schemes, batch)
    total = total_loss(losses)
    total.backward()
    return Step(
        memory=seen_memory[0],
        decoded=answers,
        chosen=seen.outputs["stage"][0][1],
        losses=losses,
        total=float(total.detach()),
    )


@torch.no_grad()
def _values(experiment: Experiment, batch: Batch, step: Step) -> dict[str, Tensor]:
    """Under their recorded names."""
    main = step.decoded[MAIN]
    proposals: Any = main.proposals
    taps = main.taps[CROSS_ATTENTION]
    values = {
        "encoder_memory": step.memory.tokens,
        "enc_logits_channel0": proposals.logits[..., 0],
        "enc_logits": proposals.logits,
        "enc_boxes": proposals.boxes,
        "enc_anchors": proposals.anchors,
        "topk_index": step.chosen,
        "init_reference": taps[0].anchors,
        "inter_references": torch.stack(
            [*(tap.anchors for tap in taps[1:]), main.layers[-1].boxes]
        ),
    }
    for kind, (layers, pairs) in _answers(experiment, batch, step).items():
        if kind == "enc":
            values["match_enc"] = _rows(pairs[0], batch)
            continue
        values[f"{kind}_boxes"] = torch.stack([layer.boxes for layer in layers])
        for i, (layer, own) in enumerate(zip(layers, pairs, strict=True)):
            values[f"{kind}_logits_l{i}"] = layer.logits
            values[f"match_{kind}_l{i}"] = _rows(own, batch)
    return values


def _answers(experiment: Experiment, batch: Batch, step: Step) -> Answers:
    """Predictions and assignments of decoder layers, and of the encoder."""
    main = step.decoded[MAIN]
    one: Any = experiment.schemes["one_to_one"]
    mixed: Any = experiment.schemes["mixed"]
    assert main.proposals is not None
    many = mixed.predictions(main)
    return {
        "o2o": (main.layers, one.matcher(main.layers, batch.targets)),
        "o2m": (many, mixed.assigner(many, batch.targets)),
        "enc": ([main.proposals], one.proposal_matcher([main.proposals], batch.targets)),
    }


def _rows(pairs: Assignment, batch: Batch) -> Tensor:
    """(P, 3) image, query, and target counted from 0 in every image."""
    starts = torch.tensor([0, *(len(t) for t in batch.targets)]).cumsum(0)
    return torch.stack([pairs.image, pairs.query, pairs.target - starts[pairs.image]], dim=1)


def _losses(
    recorded: RecordedDetr, experiment: Experiment, batch: Batch, step: Step
) -> Iterator[Row]:
    """Raw losses and what is only logged, weights, and the total."""
    detector: Any = experiment.detector
    ours = {official_loss(n, detector.num_layers): term for n, term in step.losses.items()}
    double = recorded.losses.get("float64", recorded.losses)
    raw = {name: float(term.value.detach()) for name, term in ours.items()}
    raw |= logged_errors(_answers(experiment, batch, step), batch)
    weights = recorded.losses["weight_dict_used"]
    for name, value in double["losses_unweighted"].items():
        yield compare(name, raw.get(name, float("nan")), value, LOSSES)
    for name, value in weights.items():
        yield compare(f"weight of {name}", ours[name].weight if name in ours else 0.0, value)
    yield compare("losses that only we have", len(set(ours) - set(weights)), 0)
    yield compare("weighted total", step.total, double["weighted_total"], LOSSES)


def _gradients(recorded: RecordedDetr, root: nn.Module) -> Iterator[Row]:
    """L2 norms of the gradients of the weighted total."""
    parameters = dict(root.named_parameters())
    norms = {
        name: 0.0 if p.grad is None else float(p.grad.norm())
        for name, p in parameters.items()
        if p.requires_grad
    }
    double = recorded.losses.get("float64", recorded.losses)
    for official, value in double["grad_norms"].items():
        yield compare(f"grad {official}", norms.get(rename(official) or "", -1.0), value, GRADIENTS)
    everything = sum(norm**2 for norm in norms.values()) ** 0.5
    yield compare("grad (all)", everything, double["grad_norm_all"], GRADIENTS)


def _parameters(recorded: RecordedDetr, root: nn.Module) -> Iterator[Row]:
    counts = {
        "parameters": sum(p.numel() for p in root.parameters()),
        "trainable_parameters": sum(p.numel() for p in root.parameters() if p.requires_grad),
    }
    for name, count in counts.items():
        if name in recorded.keys:
            yield compare(name, count, recorded.keys[name])
    trained = {name for name, p in root.named_parameters() if p.requires_grad}
    frozen = {rename(official) for official in recorded.keys.get("requires_grad_false", ())}
    yield compare("frozen parameters that we train", len(trained & frozen), 0)


@torch.no_grad()
def _detections(recorded: RecordedDetr, experiment: Experiment, batch: Batch) -> list[Row]:
    """The best detections of an evaluation, relative to the image first."""
    experiment.detector.eval()
    with _selection(recorded, experiment):
        last: Predictions = experiment.detector(batch.images)
    limit = _flag(recorded, "--topk_eval", 100)
    rows = [compare("topk_eval", experiment.postprocess.max_detections, limit)]
    unit = torch.ones_like(batch.images.sizes)
    for b, found in enumerate(Postprocess(max_detections=limit)(last, unit, batch.infos)):
        if f"post_boxes_{b}" in recorded.arrays:
            rows += detection_rows(recorded, b, found)
    return rows


def _flag(recorded: RecordedDetr, name: str, default: int) -> int:
    """A number among the official flags."""
    words = str(recorded.keys.get("official_flags", "")).split()
    return int(words[words.index(name) + 1]) if name in words else default
