"""Detectors: encode, queries, decode."""

from codetr.models.detectors.deformable_detr import DeformableDetr
from codetr.models.detectors.protocol import MAIN, Detector

__all__ = ["MAIN", "DeformableDetr", "Detector"]
