"""What an auxiliary head is: a one-to-many detector on the encoder's maps, for training only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from codetr.loss_terms import Losses
from codetr.structures import Batch, Candidates, Detections, Images, Pyramid


@dataclass(frozen=True, kw_only=True)
class AuxOutput:
    """``losses`` with the head's own weights (the scheme scales them by lambda_2 times the number
    of decoder layers); ``candidates[b]`` the boxes that the head assigned on image b.
    """

    losses: Losses
    candidates: tuple[Candidates, ...]


class AuxHead(Protocol):
    """An ``nn.Module`` that owns its anchors, assigner, sampler and losses. With no boxes in a
    batch it still owes the same losses, of which one is connected to each of its parameters.
    """

    def __call__(self, pyramid: Pyramid, batch: Batch) -> AuxOutput:
        """Losses and candidates for a batch with targets."""
        ...

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[Detections, ...]:
        """Detections per image in pixels of ``images``, by this branch alone with its own NMS."""
        ...
