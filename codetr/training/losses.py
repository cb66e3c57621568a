"""The training step in one place. Read this first."""

from __future__ import annotations

from collections.abc import Mapping

from codetr.detectors.protocol import MAIN, Detector
from codetr.schemes.protocol import Scheme
from codetr.structures import Batch, Losses, QueryGroup, prefixed


def training_losses(detector: Detector, schemes: Mapping[str, Scheme], batch: Batch) -> Losses:
    """All losses of a batch, named ``scheme/layer/name``. ``total_loss`` sums them."""
    memory = detector.encode(batch.images)
    groups = [QueryGroup(name=MAIN, queries=detector.queries(memory))]
    losses: Losses = {}
    for name, scheme in schemes.items():
        proposal = scheme.propose(detector, memory, batch)
        groups += proposal.groups
        losses |= prefixed(name, proposal.losses)
    decoded = detector.decode(memory, groups)
    for name, scheme in schemes.items():
        losses |= prefixed(name, scheme.score(decoded, batch))
    return losses
