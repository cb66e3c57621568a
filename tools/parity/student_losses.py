"""Losses of Conditional DETR, DAB-DETR, DN-DETR and DINO under their official names, and what the
official codes log beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.structures import Assignment, Batch, Predictions

TERMS = {"cls": "ce", "bbox": "bbox", "giou": "giou"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A layer's ``predictions`` and its ``pairs``; ``name`` is the official name of one of its
    losses, with ``{}`` for which.
    """

    name: str
    predictions: Predictions
    pairs: Assignment


def official_loss(name: str, num_layers: int) -> str:
    """The official name of one of our losses."""
    scheme, place, term = name.split("/")
    return pattern(scheme, place, num_layers).format(f"loss_{TERMS[term]}")


def pattern(scheme: str, place: str, num_layers: int) -> str:
    """The official name of a loss ``{}`` of our ``scheme`` at our ``place``."""
    if place == "encoder":
        return "{}_interm"
    index = int(place.removeprefix("layer"))
    layer = "" if index == num_layers - 1 else f"_{index}"
    return {
        "one_to_one": "{}" + layer,
        "denoising": "{}_dn" + layer,
        "query_denoising": "tgt_{}" + layer,
    }[scheme]


@torch.no_grad()
def logged(measured: Sequence[Measured], batch: Batch) -> Iterator[tuple[str, float]]:
    """``cardinality_error`` (number of queries whose best class is not the last one, against that
    of targets), ``class_error`` (percent of pairs with a wrong best class) and the halves of the L1
    loss, centre and size.
    """
    labels = torch.cat([t.labels for t in batch.targets])
    boxes = torch.cat([t.boxes for t in batch.targets])
    counts = torch.tensor([len(t) for t in batch.targets])
    for one in measured:
        logits, pairs = one.predictions.logits, one.pairs
        best = logits.argmax(-1)
        found = (best != logits.shape[-1] - 1).sum(1)
        yield one.name.format("cardinality_error"), float((found - counts).abs().double().mean())
        wrong = best[pairs.image, pairs.query] != labels[pairs.target]
        yield one.name.format("class_error"), 100 * float(_mean(wrong.double()))
        distance = (one.predictions.boxes[pairs.image, pairs.query] - boxes[pairs.target]).abs()
        number = max(len(pairs), 1)
        yield one.name.format("loss_xy"), float(distance[:, :2].sum()) / number
        yield one.name.format("loss_hw"), float(distance[:, 2:].sum()) / number


def _mean(values: Tensor) -> Tensor:
    """0 of nothing."""
    return values.sum() / max(len(values), 1)
