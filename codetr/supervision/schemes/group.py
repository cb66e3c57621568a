"""Group-wise one-to-many assignment (Group DETR, arXiv 2207.13085)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from codetr.errors import UserError
from codetr.loss_terms import scaled
from codetr.models.transformers import QueryTable
from codetr.structures import Assignment, Batch, Decoded, Predictions, QueryGroup
from codetr.supervision.assigners import HungarianMatcher
from codetr.supervision.criteria import SetCriterion, by_layer, matched_pairs, supervised
from codetr.supervision.schemes.protocol import Proposal, Scheme, Start
from codetr.supervision.schemes.scoring import Score, matched, measured


class Group(Scheme):
    """Several groups of queries, each matched one to one with all targets (section 3.2).

    The main group is one of them. In a two-stage detector all groups start from the same
    proposals and differ by their learned content.

    Args:
        matcher, criterion: match and measure every layer of every group.
        queries: builds the learned rows of one group.
        groups: number of groups, including the main one.
        weight: of each further group's losses, where the main group's have 1. (The paper takes
            the mean over all groups: the same ratios.)

    Raises UserError for numbers out of range, and for queries that learn nothing: their groups
    would be copies of the main one.
    """

    adds_groups = True

    def __init__(
        self,
        matcher: HungarianMatcher,
        criterion: SetCriterion,
        queries: Callable[[], QueryTable],
        groups: int = 11,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if groups < 2 or weight < 0:
            raise UserError(
                f"scheme.group has groups={groups}, weight={weight}: give 2 groups or more and a "
                "weight of 0 or more"
            )
        self.matcher, self.criterion = matcher, criterion
        rows = nn.ModuleList(queries() for _ in range(groups - 1))
        self.tables = rows  # type: ignore[assignment]
        if not any(True for _ in rows.parameters()):
            raise UserError(
                "scheme.group: all groups would be copies of the main one, since queries learn "
                "nothing of their own here: set model.query_init.mixed=true"
            )
        self.weight = weight

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the further groups."""
        return tuple(f"group{i + 1}" for i in range(len(self.tables)))

    def propose(self, start: Start) -> Proposal:
        """The further groups, each of which sees itself alone."""
        pairs = zip(self.names, start.own, strict=True)
        groups = [QueryGroup(name=name, queries=queries) for name, queries in pairs]
        return Proposal(groups=tuple(groups))

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Score:
        """``layer{i}/...``, the mean over the further groups, weighted by their number."""
        answers = [decoded[name].layers for name in self.names]
        every = [layer for layers in answers for layer in layers]
        (per_group,) = yield from matched(self.matcher.tables(every, batch.targets))
        depth, queries = len(answers[0]), answers[0][0].boxes.shape[1]
        layers = [_side_by_side([group[i] for group in answers]) for i in range(depth)]
        assignments = [_shifted(per_group[i::depth], queries) for i in range(depth)]
        pairs = matched_pairs(batch, queries) * len(answers)
        (found,) = yield from measured(
            supervised(self.criterion, layers, batch.targets, assignments, pairs=pairs)
        )
        return scaled(self.weight * len(answers), by_layer(found))


def _side_by_side(groups: Sequence[Predictions]) -> Predictions:
    """One layer's predictions of G groups as (B, G*Q, ...)."""
    return replace(
        groups[0],
        logits=torch.cat([group.logits for group in groups], dim=1),
        boxes=torch.cat([group.boxes for group in groups], dim=1),
    )


def _shifted(assignments: Sequence[Assignment], queries: int) -> Assignment:
    """The groups' pairs together, with group g's ``queries`` counted from g * ``queries``."""
    return Assignment(
        image=torch.cat([a.image for a in assignments]),
        query=torch.cat([a.query + g * queries for g, a in enumerate(assignments)]),
        target=torch.cat([a.target for a in assignments]),
    )
