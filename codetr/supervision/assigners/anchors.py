"""Matching of proposals by their anchors instead of their predicted boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from codetr.errors import UserError
from codetr.structures import Assignment, Predictions, Proposals, Targets
from codetr.supervision.assigners.hungarian import CostTables, HungarianMatcher, solve


class AnchorMatcher(nn.Module):
    """Matches the anchors of proposals in place of their boxes, as MS-DETR does (official
    ``use_anchors_enc_match``). Raises UserError for predictions without anchors.
    """

    def __init__(self, matcher: HungarianMatcher) -> None:
        super().__init__()
        self.matcher = matcher

    def forward(
        self, layers: Sequence[Predictions], targets: Sequence[Targets]
    ) -> tuple[Assignment, ...]:
        """Match every set of proposals (B, S, ...) by itself."""
        (assignments,) = solve([self.tables(layers, targets)])
        return assignments

    def tables(self, layers: Sequence[Predictions], targets: Sequence[Targets]) -> CostTables:
        """See ``HungarianMatcher.tables``."""
        moved = []
        for proposals in layers:
            if not isinstance(proposals, Proposals):
                raise UserError(
                    "scheme.one_to_one.proposal_matcher matches anchors, but these proposals have "
                    "none: set it to null, or use PositionedQueries"
                )
            moved.append(replace(proposals, boxes=proposals.anchors))
        return self.matcher.tables(moved, targets)
