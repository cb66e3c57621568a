"""The supervision that every DETR has: one query per object, on every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from codetr.loss_terms import Count, Losses, prefixed
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Assignment, Batch, Decoded, Targets
from codetr.supervision.assigners import AnchorMatcher, CostTables, HungarianMatcher
from codetr.supervision.criteria import SetCriterion, deep_supervision, matched_pairs
from codetr.supervision.schemes.protocol import MatchingScheme

ProposalLabels = Literal["classes", "objectness"]
"""What the encoder's proposals are measured with: the true labels, or class 0 for every object."""


class OneToOne(MatchingScheme):
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

    def problems(self, decoded: Mapping[str, Decoded], batch: Batch) -> list[CostTables]:
        """The layers, and the proposals if there are any."""
        main = decoded[MAIN]
        problems = [self.matcher.tables(main.layers, batch.targets)]
        if main.proposals is not None:
            labelled = proposal_targets(batch.targets, self.proposal_labels)
            problems.append(self.proposal_matcher.tables([main.proposals], labelled))
        return problems

    def measure(
        self,
        decoded: Mapping[str, Decoded],
        batch: Batch,
        matched: Sequence[tuple[Assignment, ...]],
    ) -> Losses:
        """``layer{i}/...`` for decoder layers and ``encoder/...`` for proposals."""
        main = decoded[MAIN]
        layers, *proposed = matched
        queries = main.layers[0].boxes.shape[1]
        losses = deep_supervision(
            self.criterion,
            main.layers,
            batch.targets,
            layers,
            pairs=matched_pairs(batch, queries),
        )
        for (pairs,) in proposed:
            assert main.proposals is not None
            labelled = proposal_targets(batch.targets, self.proposal_labels)
            # What an AnchorMatcher finds is not known of other batches.
            one_each = isinstance(self.proposal_matcher, HungarianMatcher)
            tokens = main.proposals.boxes.shape[1]
            number = matched_pairs(batch, tokens) if one_each else len(pairs)
            count = Count.of(number, main.proposals.boxes)
            measured = self.proposal_criterion(main.proposals, labelled, pairs, count)
            losses |= prefixed("encoder", measured)
        return losses


def proposal_targets(targets: Sequence[Targets], labels: ProposalLabels) -> tuple[Targets, ...]:
    """What the encoder's proposals are to find: ``targets``, with class 0 for every object where
    ``labels`` says so.
    """
    if labels == "classes":
        return tuple(targets)
    return tuple(replace(t, labels=torch.zeros_like(t.labels)) for t in targets)
