"""Boxes of teacher detectors as further supervision (Teach-DETR, arXiv 2211.11953)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from codetr.errors import UserError
from codetr.loss_terms import Count, Losses, prefixed, scaled
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Assignment, Batch, Decoded, Targets
from codetr.supervision.assigners import CostTables, HungarianMatcher
from codetr.supervision.criteria import SetCriterion, deep_supervision, matched_pairs
from codetr.supervision.schemes.one_to_one import ProposalLabels, proposal_targets
from codetr.supervision.schemes.protocol import MatchingScheme


class Teacher(MatchingScheme):
    """The main queries, matched with each teacher's boxes by themselves.

    A matched query's losses are weighted by the score of its box. The encoder's proposals are
    measured with all boxes alike. Teachers are separate (``batch.teachers``), or were merged into
    one when the data was read (``codetr.data.teachers``).

    Args:
        matcher: does not look at scores.
        criterion: as for the ground truth. Its GIoU loss is score * (1 - GIoU); the official code
            has 1 - score * GIoU, which differs by a constant.
        proposal_labels: see ``OneToOne``.
        background: weight of the class loss of queries without a teacher's box.
        weight: of each teacher's losses.

    Raises UserError for a negative weight.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        criterion: SetCriterion,
        proposal_labels: ProposalLabels = "classes",
        background: float = 0.5,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if min(background, weight) < 0:
            raise UserError(
                f"scheme.teacher has background={background}, weight={weight}: give 0 or more"
            )
        self.matcher, self.criterion = matcher, criterion
        self.proposal_labels: ProposalLabels = proposal_labels
        self.background, self.weight = background, weight

    def problems(self, decoded: Mapping[str, Decoded], batch: Batch) -> list[CostTables]:
        """Each teacher's. Raises UserError if the batch has no teachers."""
        if not batch.teachers:
            raise UserError("scheme=teacher without teachers: give data.teachers=[FILE.json,...]")
        return [table for t in batch.teachers for table in self._tables(decoded[MAIN], t)]

    def measure(
        self,
        decoded: Mapping[str, Decoded],
        batch: Batch,
        matched: Sequence[tuple[Assignment, ...]],
    ) -> Losses:
        """``{teacher}/layer{i}/...`` and ``{teacher}/encoder/...``, teachers counted from 0.

        Raises UserError if the batch has no teachers.
        """
        main = decoded[MAIN]
        per_teacher = len(matched) // len(batch.teachers)
        losses: Losses = {}
        for number, targets in enumerate(batch.teachers):
            pairs = matched[number * per_teacher : (number + 1) * per_teacher]
            counted = partial(matched_pairs, batch, teacher=number)
            losses |= prefixed(str(number), self._follow(main, targets, pairs, counted))
        return scaled(self.weight, losses)

    def _tables(self, main: Decoded, targets: Sequence[Targets]) -> list[CostTables]:
        """What one teacher's boxes are matched with: the layers, and the proposals if any."""
        tables = [self.matcher.tables(main.layers, targets)]
        if main.proposals is not None:
            labelled = proposal_targets(targets, self.proposal_labels)
            tables.append(self.matcher.tables([main.proposals], labelled))
        return tables

    def _follow(
        self,
        main: Decoded,
        targets: Sequence[Targets],
        pairs: Sequence[tuple[Assignment, ...]],
        counted: Callable[[int], float],
    ) -> Losses:
        """``counted`` says how many pairs there are with so many queries."""
        number = counted(main.layers[0].boxes.shape[1])
        losses = deep_supervision(
            self.criterion, main.layers, targets, pairs[0], self.background, number
        )
        if main.proposals is not None:
            alike = [replace(t, weights=torch.ones_like(t.weights)) for t in targets]
            (own,) = pairs[1]
            count = Count.of(counted(main.proposals.boxes.shape[1]), main.proposals.boxes)
            labelled = proposal_targets(alike, self.proposal_labels)
            measured = self.criterion(main.proposals, labelled, own, count)
            losses |= prefixed("encoder", measured)
        return losses
