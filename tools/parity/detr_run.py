"""A recorded run of DETR's family made again in float64: the model with its weights, one training
step, one evaluation; and the rows that all of these families share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from codetr.checkpoints.official import Conversion
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.loss_terms import Losses, total_loss
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Assignment, Batch, Decoded, Memory, Predictions, Targets
from codetr.training.losses import training_losses
from tools.parity.detections import detection_rows
from tools.parity.experiment import Experiment, build_experiment
from tools.parity.probe import Seen, probe
from tools.parity.recorded_detr import RecordedDetr, input_values
from tools.parity.rules_detr import Inputs
from tools.parity.table import EXACT, Row, Tolerance, compare

INPUTS = Tolerance(relative=1e-6)
NO_DROPOUT = ("model.dropout=0.0",)
"""Of attention, too, which has it as an argument."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """An experiment with the recorded weights, in float64. ``conversion.used`` has our names by the
    official ones, several joined by ", ".
    """

    experiment: Experiment
    root: nn.ModuleDict
    conversion: Conversion

    @property
    def detector(self) -> Any:
        """Looked into, beyond what its protocol promises."""
        return self.experiment.detector

    @property
    def schemes(self) -> Any:
        """Looked into, as the detector."""
        return self.experiment.schemes


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one training step made; ``seen`` holds what the watched parts took and gave."""

    memory: Memory
    decoded: Mapping[str, Decoded]
    seen: Seen
    losses: Losses
    total: float

    @property
    def main(self) -> Decoded:
        """Of the main queries."""
        return self.decoded[MAIN]


def load_model(
    recorded: RecordedDetr,
    convert: Callable[[Mapping[str, Tensor], Experiment], Conversion],
    overrides: Sequence[str] = (),
) -> Model:
    """The experiment with the official weights, strictly, and no randomness: the recorded runs drop
    nothing. Raises UserError if a key is left over or missing.
    """
    name = recorded.experiment
    experiment = build_experiment(name, recorded.num_classes, overrides)
    root = nn.ModuleDict({"detector": experiment.detector, "schemes": experiment.schemes})
    conversion = convert(recorded.state(), experiment)
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
    return Model(experiment=experiment, root=root, conversion=conversion)


def training_step(
    model: Model,
    batch: Batch,
    watched: Mapping[str, nn.Module],
    patches: Sequence[AbstractContextManager[Any]] = (),
) -> Step:
    """One step of the real training code within ``patches``, forward and backward, from clean
    gradients.
    """
    model.root.train()
    model.root.zero_grad(set_to_none=True)
    decode = model.detector.decode
    said: dict[str, Any] = {}

    def remember(memory: Memory, groups: Any) -> Mapping[str, Decoded]:
        said.update(memory=memory, decoded=decode(memory, groups))
        found: Mapping[str, Decoded] = said["decoded"]
        return found

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(model.detector, "decode", remember))
        seen = stack.enter_context(probe(watched))
        for patch in patches:
            stack.enter_context(patch)
        losses = training_losses(model.detector, model.schemes, batch)
    total = total_loss(losses)
    total.backward()
    return Step(
        memory=said["memory"],
        decoded=said["decoded"],
        seen=seen,
        losses=losses,
        total=float(total.detach()),
    )


@torch.no_grad()
def evaluated(
    model: Model, batch: Batch, patch: AbstractContextManager[Any] | None = None
) -> Predictions:
    """What the detector finds."""
    model.root.eval()
    with patch or nullcontext():
        last: Predictions = model.detector(batch.images)
    return last


def image_query_target(pairs: Assignment, targets: Sequence[Targets]) -> Tensor:
    """(P, 3), the target counted from 0 in every image."""
    starts = torch.tensor([0, *(len(t) for t in targets)]).cumsum(0)
    return torch.stack([pairs.image, pairs.query, pairs.target - starts[pairs.image]], dim=1)


def input_rows(recorded: RecordedDetr, inputs: Inputs) -> Iterator[Row]:
    """Images and boxes."""
    for name, value in input_values(inputs):
        if name in recorded.arrays:
            yield recorded.row(name, value, EXACT if "labels" in name else INPUTS)


def loss_rows(
    recorded: RecordedDetr,
    step: Step,
    official: Callable[[str], str],
    logged: Mapping[str, float],
    tolerance: Tolerance,
    absent: Callable[[str], bool] = lambda _: False,
) -> Iterator[Row]:
    """Raw losses and what is only logged, weights, and the total. ``official`` names our losses;
    those for which ``absent`` holds are zeros there, and ours are not there.
    """
    ours = {official(name): term for name, term in step.losses.items()}
    raw = {name: float(term.value.detach()) for name, term in ours.items()} | dict(logged)
    double = recorded.losses.get("float64", recorded.losses)
    weights = recorded.losses["weight_dict_used"]
    for name, value in double["losses_unweighted"].items():
        missing = 0.0 if absent(name) else float("nan")
        yield compare(name, raw.get(name, missing), value, tolerance)
    for name, value in weights.items():
        if name in ours or not absent(name):
            yield compare(f"weight of {name}", ours[name].weight if name in ours else 0.0, value)
    extra = [name for name in ours if name not in weights and not absent(name)]
    yield compare("losses that only we have", len(extra), 0)
    yield compare("weighted total", step.total, double["weighted_total"], tolerance)


def gradient_rows(
    recorded: RecordedDetr,
    model: Model,
    theirs: Mapping[str, float],
    everything: tuple[float, Tolerance],
    tolerance: Tolerance,
    kind: str = "",
) -> Iterator[Row]:
    """L2 norms of the gradients of the weighted total: ``theirs`` by official name, and of all."""
    norms = {
        name: 0.0 if p.grad is None else float(p.grad.norm())
        for name, p in model.root.named_parameters()
        if p.requires_grad
    }
    for official, value in theirs.items():
        names = model.conversion.used.get(recorded.short(official), "").split(", ")
        own = math.hypot(*(norms.get(name, 0.0) for name in names)) if names[0] else -1.0
        yield compare(f"grad {official}{kind}", own, value, tolerance)
    total, wide = everything
    yield compare(f"grad (all){kind}", math.hypot(*norms.values()), total, wide)


def parameter_rows(recorded: RecordedDetr, root: nn.Module, left_out: int = 0) -> Iterator[Row]:
    """Their number, with ``left_out`` that we do not have."""
    counts = {
        "parameters": sum(p.numel() for p in root.parameters()),
        "trainable_parameters": sum(p.numel() for p in root.parameters() if p.requires_grad),
    }
    for name, count in counts.items():
        if name in recorded.keys:
            yield compare(name, count + left_out, recorded.keys[name])


def best_detections(
    recorded: RecordedDetr, last: Predictions, batch: Batch, limit: int
) -> Iterator[Row]:
    """The ``limit`` best detections, relative to the image first."""
    unit = torch.ones_like(batch.images.sizes)
    infos = [replace(info, scale=(1.0, 1.0)) for info in batch.infos]
    for b, found in enumerate(Postprocess(max_detections=limit)(last, unit, infos)):
        if f"post_scores_{b}" in recorded.arrays:
            yield from detection_rows(recorded, b, found)
