"""From hidden states to predictions."""

from codetr.heads.detection import DetectionHead

__all__ = ["DetectionHead"]
