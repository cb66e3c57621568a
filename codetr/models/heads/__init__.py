"""From hidden states to predictions."""

from codetr.models.heads.detection import DetectionHead, Embeddings, TiedDetectionHead
from codetr.models.heads.perceptron import PerceptronHead
from codetr.models.heads.protocol import Head

__all__ = ["DetectionHead", "Embeddings", "Head", "PerceptronHead", "TiedDetectionHead"]
