"""A head whose decoder layers share one pair of embeddings."""

from __future__ import annotations

from codetr.classification import SIGMOID, Classification
from codetr.models.heads.detection import DetectionHead, Embeddings


class TiedDetectionHead(DetectionHead):
    """As ``DetectionHead``, but all decoder layers share one pair, held (and saved) once; only the
    encoder's proposals, if ``two_stage``, have their own (DINO; Deformable DETR without
    refinement).
    """

    def __init__(
        self,
        num_classes: int,
        dim: int = 256,
        num_layers: int = 6,
        two_stage: bool = True,
        size_logit: float = 0.0,
        classification: Classification = SIGMOID,
    ) -> None:
        super().__init__(num_classes, dim, 1, two_stage, size_logit, classification)
        self.num_layers = num_layers

    def layer(self, index: int) -> Embeddings:
        """The pair of all decoder layers."""
        assert 0 <= index < self.num_layers
        return self._pair(0)
