"""From hidden states to predictions."""

from codetr.models.heads.detection import DetectionHead, Embeddings
from codetr.models.heads.perceptron import PerceptronHead
from codetr.models.heads.protocol import Head
from codetr.models.heads.tied import TiedDetectionHead

__all__ = ["DetectionHead", "Embeddings", "Head", "PerceptronHead", "TiedDetectionHead"]
