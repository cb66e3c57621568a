"""Proposals matched by their anchors."""

import pytest
import torch

from codetr.errors import UserError
from codetr.structures import Predictions, Proposals, Targets
from codetr.supervision.assigners import AnchorMatcher, HungarianMatcher


def case() -> tuple[Proposals, tuple[Targets, ...]]:
    """Three proposals: the anchor of the last is at the target, the box of the first."""
    anchors = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [1.0, 1.0, 1.0, 1.0], [0.7, 0.7, 0.2, 0.2]]])
    proposals = Proposals(logits=torch.zeros(1, 3, 2), boxes=anchors.flip(1), anchors=anchors)
    target = Targets(
        boxes=torch.tensor([[0.7, 0.7, 0.2, 0.2]]),
        labels=torch.tensor([1]),
        weights=torch.ones(1),
        size=torch.tensor([50.0, 40.0]),
    )
    return proposals, (target,)


def test_the_anchor_decides_and_not_the_box() -> None:
    proposals, targets = case()
    plain = HungarianMatcher(cls=0.0)
    assert plain([proposals], targets)[0].query.tolist() == [0]
    assert AnchorMatcher(plain)([proposals], targets)[0].query.tolist() == [2]


def test_predictions_without_anchors_are_refused() -> None:
    proposals, targets = case()
    bare = Predictions(logits=proposals.logits, boxes=proposals.boxes)
    with pytest.raises(UserError, match="proposal_matcher"):
        AnchorMatcher(HungarianMatcher())([bare], targets)
