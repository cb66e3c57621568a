"""Conditional DETR, DAB-DETR, DN-DETR and DINO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from torch import Tensor, nn

from codetr.checkpoints.conditional_detr import MARKS, convert_conditional_detr
from codetr.checkpoints.dino import convert_dino
from codetr.checkpoints.renaming import Conversion
from codetr.supervision.schemes import query_denoising
from codetr.supervision.schemes.denoising import GROUP as CONTRASTIVE
from tools.parity.case import Case
from tools.parity.detr import NO_DROPOUT, Family
from tools.parity.measured import Measured, layered, pattern
from tools.parity.noise import dino_noise, query_noise
from tools.parity.step import Step
from tools.parity.student_values import noised, step_values
from tools.parity.table import EXACT, Tolerance

ARRAYS = Tolerance(absolute=1e-5, relative=1e-6)
BOXES = Tolerance(absolute=1e-6)
UNDISTURBED = Tolerance(absolute=1e-10)

WHOLE_NUMBERS = ("topk_index", "match_", "proposal_valid", "attention_mask", "dn_pad", "dn_slot")
NOISE = {query_denoising.GROUP: query_noise, CONTRASTIVE: dino_noise}
DENOISING_LOSSES = ("tgt_", "_dn")
PROPOSALS = "_interm"
"""What the official code calls the encoder's."""


def _tolerance(name: str) -> Tolerance:
    if name.startswith("eval_"):
        return UNDISTURBED
    if name.startswith(WHOLE_NUMBERS) or "labels" in name:
        return EXACT
    return BOXES if "boxes" in name or "references" in name else ARRAYS


def _convert(official: Mapping[str, Tensor], _: Any) -> Conversion:
    conditional = all(name in official for name in MARKS)
    return convert_conditional_detr(official) if conditional else convert_dino(official)


def _watched(detector: Any) -> dict[str, nn.Module]:
    decoder = detector.decoder
    return {"backbone": detector.backbone, "norm": decoder.norm, "last": decoder.layers[-1]}


def _recorded_noise(case: Case) -> list[AbstractContextManager[Any]]:
    counts = [len(t) for t in case.batch.targets]
    if max(counts) == 0:
        return []
    return [
        mock.patch.object(
            case.schemes[name], "draw", mock.Mock(return_value=noise(case.recorded, counts))
        )
        for name, noise in NOISE.items()
        if name in case.schemes
    ]


def _measured(case: Case, step: Step) -> Iterator[Measured]:
    """Every layer that the official code measures, matched again by the schemes' own matchers."""
    one, main, targets = case.schemes["one_to_one"], step.main, case.batch.targets
    pairs = one.matcher(main.layers, targets)
    yield from layered("one_to_one", main.layers, pairs, targets, "match_l{}")
    group = noised(step)
    if group is not None:
        answer = step.decoded[group]
        assert answer.group.assignment is not None
        same = [answer.group.assignment] * len(answer.layers)
        yield from layered(group, answer.layers, same, targets)
    if main.proposals is not None:
        (own,) = one.proposal_matcher([main.proposals], targets)
        yield Measured(
            name=pattern("one_to_one", "encoder", len(main.layers), PROPOSALS),
            match="match_interm",
            predictions=main.proposals,
            pairs=own,
            targets=targets,
        )


def _absent(step: Step, name: str) -> bool:
    """Where no image has a box, the official denoising losses are zeros, and ours are not there."""
    return noised(step) is None and any(mark in name for mark in DENOISING_LOSSES)


def _unread(case: Case) -> int:
    """Numbers in rows of the official table of labels that no class has."""
    if "denoising" not in case.schemes:
        return 0
    rows, width = case.recorded.shapes.get("label_enc.weight", (0, 0))
    return max(rows - case.recorded.num_classes, 0) * width


STUDENTS = Family(
    convert=_convert,
    overrides=NO_DROPOUT,
    watched=_watched,
    patches=_recorded_noise,
    values=lambda case, step: step_values(case.detector, step, case.batch),
    measured=_measured,
    tolerance=_tolerance,
    losses=Tolerance(absolute=1e-12, relative=1e-9),
    gradients=Tolerance(absolute=1e-9, relative=1e-7),
    encoder=PROPOSALS,
    absent=_absent,
    left_out=_unread,
)
