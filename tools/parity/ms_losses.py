"""What MS-DETR's official code calls its losses, and what it logs beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from codetr.structures import Assignment, Batch, Predictions

Answers = Mapping[str, tuple[Sequence[Predictions], Sequence[Assignment]]]
"""Predictions and assignments of decoder layers (``o2o``, ``o2m``) and of the encoder (``enc``)."""

TERMS = {"cls": "ce", "bbox": "bbox", "giou": "giou"}
SUFFIXES = {"o2o": "", "o2m": "_o2m", "enc": "_enc"}


def official_loss(name: str, num_layers: int) -> str:
    """The official name of one of our losses."""
    scheme, place, term = name.split("/")
    if place == "encoder":
        return f"loss_{TERMS[term]}_enc"
    index = int(place.removeprefix("layer"))
    layer = "" if index == num_layers - 1 else f"_{index}"
    return f"loss_{TERMS[term]}{layer}{'_o2m' if scheme == 'mixed' else ''}"


@torch.no_grad()
def logged_errors(answers: Answers, batch: Batch) -> dict[str, float]:
    """The official ``class_error`` (percent of pairs whose best class is wrong; of last layers)
    and ``cardinality_error`` (number of queries whose best class is not the last one, against that
    of targets).
    """
    labels = torch.cat([t.labels for t in batch.targets])
    counts = torch.tensor([len(t) for t in batch.targets])
    logged = {}
    for kind, (layers, pairs) in answers.items():
        suffix = SUFFIXES[kind]
        for i, (layer, own) in enumerate(zip(layers, pairs, strict=True)):
            best = layer.logits.argmax(-1)
            found = (best != layer.logits.shape[-1] - 1).sum(1)
            last = i == len(layers) - 1
            name = f"cardinality_error{'' if last else f'_{i}'}{suffix}"
            logged[name] = float((found - counts).abs().double().mean())
            if last and kind != "enc":
                right = best[own.image, own.query] == labels[own.target]
                logged[f"class_error{suffix}"] = 100 * (1 - float(right.sum()) / max(len(right), 1))
    return logged
