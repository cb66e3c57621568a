"""Auxiliary heads: one-to-many detectors on the encoder's maps, for training only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from codetr.loss_terms import Losses
from codetr.structures import Batch, Candidates, Detections, Images, Pyramid


@dataclass(frozen=True, kw_only=True)
class AuxOutput:
    """``losses`` with the head's own weights (the scheme scales them by lambda_2 times the number
    of decoder layers); ``candidates[b]`` the boxes that the head assigned in image b.
    """

    losses: Losses
    candidates: tuple[Candidates, ...]


class AuxHead(Protocol):
    """An ``nn.Module`` with its own anchors, assigner, sampler and losses. A batch without boxes
    must yield the same losses, and every parameter must be reached by the gradient of one of them.
    """

    def __call__(self, pyramid: Pyramid, batch: Batch) -> AuxOutput:
        """Losses and candidates for a batch with targets."""
        ...

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[Detections, ...]:
        """Detections of this branch alone, after its own NMS, in pixels of ``images``."""
        ...
