"""Conditional DETR, DAB-DETR, DN-DETR and DINO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from unittest import mock

from torch import Tensor, nn

from codetr.checkpoints.conditional_detr import MARKS, convert_conditional_detr
from codetr.checkpoints.dino import convert_dino
from codetr.checkpoints.renaming import Conversion
from codetr.supervision.schemes import query_denoising
from codetr.supervision.schemes.denoising import GROUP as CONTRASTIVE
from tools.parity.case import Case
from tools.parity.detector import NO_DROPOUT, Family
from tools.parity.loss_names import detr_loss
from tools.parity.measured import Measured, layered, matched
from tools.parity.noise import dino_noise, query_noise
from tools.parity.step import Patches, Step
from tools.parity.student_values import noised, step_values
from tools.parity.table import Tolerance, Tolerances

NOISE = {query_denoising.GROUP: query_noise, CONTRASTIVE: dino_noise}
DENOISING_LOSSES = ("tgt_", "_dn")
PROPOSALS = "_interm"
"""Official suffix of the encoder's losses."""


def _convert(official: Mapping[str, Tensor], _: Any) -> Conversion:
    conditional = all(name in official for name in MARKS)
    return convert_conditional_detr(official) if conditional else convert_dino(official)


def _watched(detector: Any) -> dict[str, nn.Module]:
    decoder = detector.decoder
    return {"backbone": detector.backbone, "norm": decoder.norm, "last": decoder.layers[-1]}


def _recorded_noise(case: Case) -> Patches:
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
    """All layers that the official code measures, matched again by the schemes' own matchers."""
    one, targets = case.schemes["one_to_one"], case.batch.targets
    yield from matched(
        "one_to_one", one, step.main, targets, proposals="match_interm", encoder=PROPOSALS
    )
    group = noised(step)
    if group is not None:
        answer = step.decoded[group]
        assert answer.group.assignment is not None
        same = [answer.group.assignment] * len(answer.layers)
        yield from layered(group, answer.layers, same, targets)


def _absent(step: Step, name: str) -> bool:
    """Without any box, official denoising losses are zero and ours are missing."""
    return noised(step) is None and any(mark in name for mark in DENOISING_LOSSES)


def _unread(case: Case) -> int:
    """Numbers in rows of the official label embedding that no class uses."""
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
    tolerances=Tolerances(
        arrays=Tolerance(absolute=1e-5, relative=1e-6),
        losses=Tolerance(absolute=1e-12, relative=1e-9),
        gradients=Tolerance(absolute=1e-9, relative=1e-7),
        special={
            "^eval_": Tolerance(absolute=1e-10),
            "boxes|references": Tolerance(absolute=1e-6),
        },
    ),
    loss_name=partial(detr_loss, encoder=PROPOSALS),
    absent=_absent,
    left_out=_unread,
)
