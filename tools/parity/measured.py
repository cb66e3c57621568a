"""What official codes of DETR's family compute per layer: matched pairs, and logged metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codetr.structures import Assignment, Decoded, Predictions, Targets
from codetr.supervision.schemes.one_to_one import proposal_targets
from tools.parity.loss_names import pattern


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A layer's ``predictions`` and its ``pairs`` with ``targets``. ``name`` is the official name
    of its quantities with ``{}`` for which one; ``match`` is the name of its recorded pairs, if
    there are any.
    """

    name: str
    match: str = ""
    predictions: Predictions
    pairs: Assignment
    targets: Sequence[Targets]


def layered(
    scheme: str,
    layers: Sequence[Predictions],
    pairs: Sequence[Assignment],
    targets: Sequence[Targets],
    match: str = "",
) -> Iterator[Measured]:
    """All layers of a decoder; ``match`` has ``{}`` for the layer's number."""
    for i, (layer, own) in enumerate(zip(layers, pairs, strict=True)):
        yield Measured(
            name=pattern(scheme, f"layer{i}", len(layers)),
            match=match.format(i),
            predictions=layer,
            pairs=own,
            targets=targets,
        )


def matched(
    name: str,
    scheme: Any,
    main: Decoded,
    targets: Sequence[Targets],
    match: str = "match_l{}",
    proposals: str = "match_enc",
    encoder: str = "_enc",
) -> Iterator[Measured]:
    """Match ``targets`` again with every layer of the main queries, and with the encoder's
    proposals if there are any, by the ``scheme`` called ``name``.

    ``match`` as for ``layered``; ``proposals`` names the proposals' pairs, ``encoder`` is the
    official suffix of their losses.
    """
    yield from layered(name, main.layers, scheme.matcher(main.layers, targets), targets, match)
    if main.proposals is not None:
        labelled = proposal_targets(targets, scheme.proposal_labels)
        matcher = getattr(scheme, "proposal_matcher", scheme.matcher)
        (pairs,) = matcher([main.proposals], labelled)
        yield Measured(
            name=pattern(name, "encoder", len(main.layers), encoder),
            match=proposals,
            predictions=main.proposals,
            pairs=pairs,
            targets=labelled,
        )


def matches(measured: Iterable[Measured]) -> dict[str, Tensor]:
    """(P, 3) image, query and target, the latter counted from 0 in each image."""
    found = {}
    for one in measured:
        starts, pairs = torch.tensor([0, *(len(t) for t in one.targets)]).cumsum(0), one.pairs
        own = pairs.target - starts[pairs.image]
        found[one.match] = torch.stack([pairs.image, pairs.query, own], dim=1)
    found.pop("", None)
    return found


@torch.no_grad()
def logged(measured: Iterable[Measured]) -> Iterator[tuple[str, float]]:
    """``cardinality_error`` (queries whose best class is not the last one, minus the number of
    targets), ``class_error`` (percentage of pairs with a wrong best class), and the L1 loss of
    centres and of sizes.
    """
    for one in measured:
        logits, pairs = one.predictions.logits, one.pairs
        labels = torch.cat([t.labels for t in one.targets])
        boxes = torch.cat([t.boxes for t in one.targets])
        counts = torch.tensor([len(t) for t in one.targets])
        best, number = logits.argmax(-1), max(len(pairs), 1)
        found = (best != logits.shape[-1] - 1).sum(1)
        yield one.name.format("cardinality_error"), float((found - counts).abs().double().mean())
        right = best[pairs.image, pairs.query] == labels[pairs.target]
        yield one.name.format("class_error"), 100 * (1 - float(right.sum()) / number)
        distance = (one.predictions.boxes[pairs.image, pairs.query] - boxes[pairs.target]).abs()
        yield one.name.format("loss_xy"), float(distance[:, :2].sum()) / number
        yield one.name.format("loss_hw"), float(distance[:, 2:].sum()) / number
