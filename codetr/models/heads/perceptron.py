"""A head of two multilayer perceptrons."""

from __future__ import annotations

from torch import nn

from codetr.classification import SIGMOID, Classification
from codetr.errors import UserError
from codetr.models.heads.detection import Embeddings
from codetr.models.layers import Mlp


class PerceptronHead(nn.Module):
    """Classes and boxes from three linear layers each, with torch's default initial values (YOLOS),
    shared by all ``num_layers`` layers of a decoder. ``classification`` gives the number of logits
    for ``num_classes``.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int = 256,
        num_layers: int = 1,
        classification: Classification = SIGMOID,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_layers = num_classes, num_layers
        self.classification = classification
        self.classify = Mlp(dim, dim, dim, classification.width(num_classes))
        self.regress = Mlp(dim, dim, dim, 4)

    def layer(self, index: int) -> Embeddings:
        """The pair that all layers share."""
        assert 0 <= index < self.num_layers
        return Embeddings(self.classify, self.regress, self.classification)

    @property
    def proposals(self) -> Embeddings:
        """Raises UserError: this head has no embeddings for proposals."""
        raise UserError(
            "queries are selected from the encoder's proposals, but this head has nothing for "
            "them: choose another model"
        )
