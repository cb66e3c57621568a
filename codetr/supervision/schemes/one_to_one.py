"""The supervision that every DETR has: one query per object, on every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from codetr.loss_terms import prefixed
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Decoded, Targets
from codetr.supervision.assigners import AnchorMatcher, HungarianMatcher
from codetr.supervision.criteria import SetCriterion, by_layer, matched_pairs, supervised
from codetr.supervision.schemes.protocol import Scheme
from codetr.supervision.schemes.scoring import Score, matched, measured

ProposalLabels = Literal["classes", "objectness"]
"""Labels of the encoder's proposals: those of the targets, or class 0 for every object."""


class OneToOne(Scheme):
    """Hungarian matching of the main queries, and of the encoder's proposals if there are any.

    ``proposal_labels``: ``classes`` measures proposals with the true labels (DINO); ``objectness``
    with class 0 for every object (Deformable DETR). ``proposal_matcher`` and
    ``proposal_criterion`` are for the proposals alone (MS-DETR); None: the same as for layers.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        criterion: SetCriterion,
        proposal_labels: ProposalLabels = "classes",
        proposal_matcher: HungarianMatcher | AnchorMatcher | None = None,
        proposal_criterion: SetCriterion | None = None,
    ) -> None:
        super().__init__()
        self.matcher, self.criterion = matcher, criterion
        self.proposal_matcher = matcher if proposal_matcher is None else proposal_matcher
        self.proposal_criterion = criterion if proposal_criterion is None else proposal_criterion
        self.proposal_labels = proposal_labels

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Score:
        """``layer{i}/...`` for decoder layers and ``encoder/...`` for proposals."""
        main = decoded[MAIN]
        problems = [self.matcher.tables(main.layers, batch.targets)]
        labelled: tuple[Targets, ...] = ()
        if main.proposals is not None:
            labelled = proposal_targets(batch.targets, self.proposal_labels)
            problems.append(self.proposal_matcher.tables([main.proposals], labelled))
        assignments, *proposed = yield from matched(*problems)

        pairs = matched_pairs(batch, main.layers[0].boxes.shape[1])
        groups = [supervised(self.criterion, main.layers, batch.targets, assignments, pairs=pairs)]
        if main.proposals is not None:
            # The pairs of an AnchorMatcher in other batches are not known.
            one_each = isinstance(self.proposal_matcher, HungarianMatcher)
            tokens = main.proposals.boxes.shape[1]
            groups.append(
                supervised(
                    self.proposal_criterion,
                    [main.proposals],
                    labelled,
                    proposed[0],
                    pairs=matched_pairs(batch, tokens) if one_each else None,
                )
            )
        layers, *encoder = yield from measured(*groups)
        losses = by_layer(layers)
        for (own,) in encoder:
            losses |= prefixed("encoder", own)
        return losses


def proposal_targets(targets: Sequence[Targets], labels: ProposalLabels) -> tuple[Targets, ...]:
    """``targets`` for the encoder's proposals: with class 0 for every object if ``labels`` is
    ``objectness``.
    """
    if labels == "classes":
        return tuple(targets)
    return tuple(replace(t, labels=torch.zeros_like(t.labels)) for t in targets)
