"""Hybrid matching: a second group of queries, each target repeated (H-DETR, arXiv 2207.13080)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from codetr.errors import UserError
from codetr.loss_terms import scaled
from codetr.models.transformers import QueryTable
from codetr.structures import Batch, Decoded, QueryGroup, Targets
from codetr.supervision.assigners import HungarianMatcher
from codetr.supervision.criteria import SetCriterion, by_layer, matched_pairs, supervised
from codetr.supervision.schemes.protocol import Proposal, Scheme, Start
from codetr.supervision.schemes.scoring import Score, matched, measured

GROUP = "hybrid"


class Hybrid(Scheme):
    """One-to-many supervision by repeated targets: the hybrid branch scheme (section 3).

    Args:
        matcher, criterion: match and measure the group's layers, each by itself.
        queries: rows of the group; in a two-stage detector the proposals after the main queries'.
        repeats: K, the number of copies of each target that the group is matched with.
        weight: lambda, of the group's losses.

    Raises UserError where repeats or weight are out of range.
    """

    adds_groups = True

    def __init__(
        self,
        matcher: HungarianMatcher,
        criterion: SetCriterion,
        queries: QueryTable,
        repeats: int = 6,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if repeats < 1 or weight < 0:
            raise UserError(
                f"scheme.hybrid has repeats={repeats}, weight={weight}: give repeats >= 1 and a "
                "weight of 0 or more"
            )
        self.matcher, self.criterion = matcher, criterion
        self.queries = queries
        self.tables = (queries,)
        self.repeats, self.weight = repeats, weight

    def propose(self, start: Start) -> Proposal:
        """The one-to-many group, which sees itself alone."""
        (queries,) = start.own
        targets = repeated(start.batch.targets, self.repeats)
        return Proposal(groups=(QueryGroup(name=GROUP, queries=queries, targets=targets),))

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Score:
        """``layer{i}/...``, divided by the number of repeated targets."""
        answer = decoded[GROUP]
        targets = answer.group.targets
        (assignments,) = yield from matched(self.matcher.tables(answer.layers, targets))
        pairs = matched_pairs(batch, len(answer.group), self.repeats)
        (layers,) = yield from measured(
            supervised(self.criterion, answer.layers, targets, assignments, pairs=pairs)
        )
        return scaled(self.weight, by_layer(layers))


def repeated(targets: Sequence[Targets], times: int) -> tuple[Targets, ...]:
    """Each image's whole list of boxes ``times`` times, one copy after the other."""
    return tuple(
        Targets(
            boxes=t.boxes.repeat(times, 1),
            labels=t.labels.repeat(times),
            weights=t.weights.repeat(times),
            size=t.size,
        )
        for t in targets
    )
