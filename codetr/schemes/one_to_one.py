"""The supervision that every DETR has: one query per object, on every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from codetr.assigners import HungarianMatcher
from codetr.criteria import SetCriterion, deep_supervision, normaliser
from codetr.detectors.protocol import MAIN, Detector
from codetr.schemes.protocol import Proposal
from codetr.structures import Batch, Decoded, Losses, Memory, Predictions, Targets, prefixed


class OneToOne(nn.Module):
    """Hungarian matching of the main queries, and of the encoder's proposals if there are any.

    ``proposal_labels``: ``classes`` measures proposals with the true labels (DINO); ``objectness``
    with class 0 for every object (Deformable DETR).
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        criterion: SetCriterion,
        proposal_labels: Literal["classes", "objectness"] = "classes",
    ) -> None:
        super().__init__()
        self.matcher, self.criterion = matcher, criterion
        self.proposal_labels = proposal_labels

    def propose(self, detector: Detector, memory: Memory, batch: Batch) -> Proposal:
        """Nothing: the main group is there anyway."""
        return Proposal()

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Losses:
        """``layer{i}/...`` for decoder layers and ``encoder/...`` for proposals."""
        main = decoded[MAIN]
        losses = deep_supervision(
            self.criterion, main.layers, batch.targets, self.matcher(main.layers, batch.targets)
        )
        if main.proposals is not None:
            losses |= prefixed("encoder", self._score_proposals(main.proposals, batch.targets))
        return losses

    def _score_proposals(self, proposals: Predictions, targets: tuple[Targets, ...]) -> Losses:
        if self.proposal_labels == "objectness":
            targets = tuple(replace(t, labels=torch.zeros_like(t.labels)) for t in targets)
        (assignment,) = self.matcher([proposals], targets)
        return self.criterion(
            proposals, targets, assignment, normaliser(assignment, proposals.boxes)
        )
