"""From hidden states to predictions."""

from codetr.models.heads.detection import DetectionHead
from codetr.models.heads.tied import TiedDetectionHead

__all__ = ["DetectionHead", "TiedDetectionHead"]
