"""What a training scheme is. Everything that exists only to train is one of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from codetr.models.detectors.protocol import Detector
from codetr.structures import Assignment, Batch, Decoded, Losses, Memory, QueryGroup
from codetr.supervision.assigners import CostTables


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a scheme adds before decoding: query groups, and losses known by then."""

    groups: tuple[QueryGroup, ...] = ()
    losses: Losses = field(default_factory=dict)


class Scheme(Protocol):
    """A training scheme: an ``nn.Module`` with no hidden state between the two calls."""

    def propose(self, detector: Detector, memory: Memory, batch: Batch) -> Proposal:
        """Before decoding: extra query groups and losses on the encoder's output."""
        ...

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Losses:
        """After decoding: assign targets to the decoded groups and measure them."""
        ...


@runtime_checkable
class MatchingScheme(Protocol):
    """What a scheme is besides that scores after matching on the host: the two halves of its
    ``score``, so that a step can match for all schemes at once and give the device other work
    meanwhile.
    """

    def problems(self, decoded: Mapping[str, Decoded], batch: Batch) -> Sequence[CostTables]:
        """What has to be matched."""
        ...

    def measure(
        self,
        decoded: Mapping[str, Decoded],
        batch: Batch,
        matched: Sequence[tuple[Assignment, ...]],
    ) -> Losses:
        """The losses, under what every problem's layers were matched with."""
        ...
