"""What official codes of DETR's family compute per layer, by their names: losses, matched pairs and
logged metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.structures import Assignment, Predictions, Targets
from codetr.supervision.schemes.one_to_one import proposal_targets
from tools.parity.case import Case
from tools.parity.step import Step

TERMS = {"cls": "ce", "bbox": "bbox", "giou": "giou"}
PATTERNS = {
    "one_to_one": "{{}}{}",
    "mixed": "{{}}{}_o2m",
    "hybrid": "{{}}{}_one2many",
    "teacher": "{{}}{}_ensemble",
    "denoising": "{{}}_dn{}",
    "query_denoising": "tgt_{{}}{}",
}
"""Official name of a quantity ``{{}}`` of a scheme at a place ``{}``."""

PREFIXES = {
    "one_to_one": ("", "o2o_", "one2one_"),
    "mixed": ("o2m_",),
    "hybrid": ("one2many_",),
    "teacher": ("teacher_",),
    "denoising": ("dn_",),
    "query_denoising": ("dn_",),
}
"""Beginnings of the official names of a scheme's arrays, whatever the repository."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """``predictions`` of a layer and their ``pairs`` with ``targets``, the whole list of which is
    ``repeats`` copies. ``name`` is the official name of its quantities with ``{}`` for which one,
    ``matches`` those that its recorded pairs may have.
    """

    name: str
    matches: Sequence[str]
    predictions: Predictions
    pairs: Assignment
    targets: Sequence[Targets]
    repeats: int = 1

    def pairs_by_image(self) -> Tensor:
        """(P, 3) image, query and target, the latter counted from 0 in each image."""
        own, counts = self.pairs, self._counts()
        target = own.target - (counts.cumsum(0) - counts)[own.image]
        return torch.stack([own.image, own.query, target], dim=1)

    def without_copies(self, pairs: Tensor) -> Tensor:
        """``pairs`` (P, 3) with the number of the original in place of that of its copy: which one
        is matched is arbitrary, as their costs are equal.
        """
        if self.repeats == 1:
            return pairs
        originals = (self._counts() // self.repeats)[pairs[:, 0]]
        return torch.cat([pairs[:, :2], (pairs[:, 2] % originals)[:, None]], dim=1)

    def _counts(self) -> Tensor:
        return torch.tensor([len(t) for t in self.targets])


def measured(case: Case, step: Step, encoder: str) -> Iterator[Measured]:
    """All layers and proposals that the official code measures, matched again by our schemes.

    ``encoder`` is the official suffix of the proposals' losses.
    """
    main, truth = step.main, case.batch.targets
    for name, scheme in case.schemes.items():
        if name == "mixed":
            layers = scheme.predictions(main)
            yield from layered(name, layers, scheme.assigner(layers, truth), truth)
        elif name in step.decoded:
            answer = step.decoded[name]
            targets, known = answer.group.targets, answer.group.assignment
            if len(answer.group) == 0:
                continue
            pairs = scheme.matcher(answer.layers, targets) if known is None else None
            yield from layered(
                name,
                answer.layers,
                pairs or [known] * len(answer.layers),
                targets,
                getattr(scheme, "repeats", 1),
            )
        else:
            for targets in case.batch.teachers if name == "teacher" else [truth]:
                yield from layered(name, main.layers, scheme.matcher(main.layers, targets), targets)
                if main.proposals is None:
                    continue
                labelled = proposal_targets(targets, scheme.proposal_labels)
                matcher = getattr(scheme, "proposal_matcher", scheme.matcher)
                (found,) = matcher([main.proposals], labelled)
                yield Measured(
                    name=pattern(name, "encoder", len(main.layers), encoder),
                    matches=[f"match_{p}{e}" for p in PREFIXES[name] for e in ("enc", "interm")],
                    predictions=main.proposals,
                    pairs=found,
                    targets=labelled,
                )


def layered(
    scheme: str,
    layers: Sequence[Predictions],
    pairs: Sequence[Assignment],
    targets: Sequence[Targets],
    repeats: int = 1,
) -> Iterator[Measured]:
    """All layers of a decoder; the only one of a detector has no number."""
    for i, (layer, own) in enumerate(zip(layers, pairs, strict=True)):
        names = [f"match_{prefix}l{i}" for prefix in PREFIXES[scheme]]
        yield Measured(
            name=pattern(scheme, f"layer{i}", len(layers)),
            matches=names if len(layers) > 1 else [*names, "match"],
            predictions=layer,
            pairs=own,
            targets=targets,
            repeats=repeats,
        )


def pattern(scheme: str, place: str, num_layers: int, encoder: str = "_enc") -> str:
    """The official name of a quantity ``{}`` of our ``scheme`` at our ``place``: ``layer0`` and so
    on, or ``encoder``, whose official suffix is ``encoder``.
    """
    if place == f"layer{num_layers - 1}":
        where = ""
    else:
        where = encoder if place == "encoder" else f"_{int(place.removeprefix('layer'))}"
    return PATTERNS[scheme].format(where)


def detr_loss(name: str, num_layers: int, encoder: str = "_enc") -> str:
    """The official name of one of our losses in repositories of DETR's family."""
    scheme, *place, term = name.split("/")
    return pattern(scheme, place[-1], num_layers, encoder).format(f"loss_{TERMS[term]}")


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
        right = best[pairs.image, pairs.query] == labels[pairs.target]
        distance = (one.predictions.boxes[pairs.image, pairs.query] - boxes[pairs.target]).abs()
        yield one.name.format("cardinality_error"), float((found - counts).abs().double().mean())
        yield one.name.format("class_error"), 100 * (1 - float(right.sum()) / number)
        yield one.name.format("loss_xy"), float(distance[:, :2].sum()) / number
        yield one.name.format("loss_hw"), float(distance[:, 2:].sum()) / number
