"""The interface of a head, for decoders and query initialisations."""

from __future__ import annotations

from typing import Protocol

from codetr.classification import Classification
from codetr.models.heads.detection import Embeddings


class Head(Protocol):
    """An ``nn.Module`` that predicts ``num_classes`` classes and a box from the output of each of
    ``num_layers`` decoder layers. ``classification`` gives the meaning of its class logits.
    """

    num_classes: int
    num_layers: int
    classification: Classification

    def layer(self, index: int) -> Embeddings:
        """The embeddings of layer ``index``, from 0 to ``num_layers`` - 1: hidden states (B, Q, C)
        to ``Predictions``. Several layers may share them.
        """
        ...

    @property
    def proposals(self) -> Embeddings:
        """The embeddings that predict proposals from the memory's tokens (B, S, C). Raises
        UserError if the head has none.
        """
        ...
