"""Losses and matchings of H-DETR and Teach-DETR under their official names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from codetr.loss_terms import Losses
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Assignment, Batch, Decoded, Predictions, Targets
from codetr.supervision.schemes.hybrid import GROUP as HYBRID
from tools.parity.experiment import Experiment

TERMS = {"cls": "loss_ce", "bbox": "loss_bbox", "giou": "loss_giou"}
SUFFIXES = {"one_to_one": "", "hybrid": "_one2many", "teacher": "_ensemble"}
MATCHINGS = {"one_to_one": "one2one", "hybrid": "one2many", "teacher": "teacher"}


@dataclass(frozen=True, kw_only=True)
class Matched:
    """One layer's ``predictions``, its pairs with ``targets``, and its official ``place``: the
    number of a decoder layer, or ``enc``.
    """

    scheme: str
    place: str
    predictions: Predictions
    targets: Sequence[Targets]
    pairs: Assignment


@torch.no_grad()
def matchings(schemes: Any, decoded: Mapping[str, Decoded], batch: Batch) -> Iterator[Matched]:
    """Every matching of a training step, made again by the schemes' own matchers."""
    supervision = {"one_to_one": (MAIN, batch.targets)}
    supervision["hybrid"] = (HYBRID, decoded[HYBRID].group.targets)
    if batch.teachers:
        supervision["teacher"] = (MAIN, batch.teachers[0])
    for scheme, (group, targets) in supervision.items():
        matcher = schemes[scheme].matcher
        layers = decoded[group].layers
        for i, (layer, pairs) in enumerate(zip(layers, matcher(layers, targets), strict=True)):
            yield Matched(
                scheme=scheme, place=str(i), predictions=layer, targets=targets, pairs=pairs
            )
        proposals = decoded[group].proposals
        if proposals is not None:
            plain = [replace(t, labels=torch.zeros_like(t.labels)) for t in targets]
            (pairs,) = matcher([proposals], plain)
            yield Matched(
                scheme=scheme, place="enc", predictions=proposals, targets=plain, pairs=pairs
            )


def matched_pairs(schemes: Any, decoded: Mapping[str, Decoded], batch: Batch) -> dict[str, Tensor]:
    """``match_*``: (P, 3) image, query, and target counted from 0 in every image."""
    found = {}
    for one in matchings(schemes, decoded, batch):
        starts = torch.tensor([0, *(len(t) for t in one.targets)]).cumsum(0)
        pairs = one.pairs
        place = "enc" if one.place == "enc" else f"l{one.place}"
        found[f"match_{MATCHINGS[one.scheme]}_{place}"] = torch.stack(
            [pairs.image, pairs.query, pairs.target - starts[pairs.image]], dim=1
        )
    return found


def losses_of(
    experiment: Experiment, decoded: Mapping[str, Decoded], losses: Losses, batch: Batch
) -> tuple[dict[str, float], float]:
    """Raw losses, and what the official code logs beside them, under the official names; and what
    our total lacks.

    The official GIoU loss of a teacher's box of score s is 1 - s GIoU, ours s (1 - GIoU): the mean
    of 1 - s is added here. It has no gradient.
    """
    detector: Any = experiment.detector
    last = detector.num_layers - 1
    found: dict[str, float] = {}
    for name, term in losses.items():
        scheme, *place, kind = name.split("/")
        where = place[-1].removeprefix("layer").replace("encoder", "enc")
        official = TERMS[kind] + _number(where, last) + SUFFIXES[scheme]
        found[official] = float(term.value.detach())
    lacking = 0.0
    if batch.teachers:
        scores = torch.cat([t.weights for t in batch.teachers[0]])
        gap = float((1 - scores).mean())
        for name in [n for n in found if n.startswith("loss_giou") and n.endswith("_ensemble")]:
            if "_enc" not in name:
                found[name] += gap
                lacking += gap * losses["teacher/0/layer0/giou"].weight
    for one in matchings(experiment.schemes, decoded, batch):
        found |= _logged(one, last)
    return found, lacking


def _number(place: str, last: int) -> str:
    return "" if place == str(last) else f"_{place}"


def _logged(one: Matched, last: int) -> dict[str, float]:
    """``cardinality_error`` (number of queries whose best class is not the last one, against that
    of targets) and, of the last layer, ``class_error`` (percent of pairs with a wrong best class).
    """
    suffix = SUFFIXES[one.scheme]
    logits, pairs = one.predictions.logits, one.pairs
    best = logits.argmax(-1)
    counts = torch.tensor([len(t) for t in one.targets])
    error = ((best != logits.shape[-1] - 1).sum(1) - counts).abs().double().mean()
    logged = {f"cardinality_error{_number(one.place, last)}{suffix}": float(error)}
    if one.place == str(last):
        labels = torch.cat([t.labels for t in one.targets])
        right = best[pairs.image, pairs.query] == labels[pairs.target]
        logged[f"class_error{suffix}"] = 100 * (1 - float(right.double().mean()))
    return logged
