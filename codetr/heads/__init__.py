"""From hidden states to predictions."""

from codetr.heads.detection import DetectionHead
from codetr.heads.tied import TiedDetectionHead

__all__ = ["DetectionHead", "TiedDetectionHead"]
