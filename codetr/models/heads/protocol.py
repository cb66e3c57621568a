"""What a head is to a decoder and a query initialisation."""

from __future__ import annotations

from typing import Protocol

from codetr.classification import Classification
from codetr.models.heads.detection import Embeddings


class Head(Protocol):
    """An ``nn.Module`` that predicts ``num_classes`` classes and a box from each of ``num_layers``
    answers of a decoder. ``classification`` is what its class logits mean.
    """

    num_classes: int
    num_layers: int
    classification: Classification

    def layer(self, index: int) -> Embeddings:
        """What reads answer ``index``, from 0 to ``num_layers`` - 1: hidden states (B, Q, C) to
        ``Predictions``. Several answers may share it.
        """
        ...

    @property
    def proposals(self) -> Embeddings:
        """What reads the memory's tokens (B, S, C) as proposals. Raises UserError if the head has
        nothing for them.
        """
        ...
