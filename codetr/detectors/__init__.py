"""Detectors: encode, queries, decode."""

from codetr.detectors.deformable_detr import DeformableDetr
from codetr.detectors.protocol import MAIN, Detector

__all__ = ["MAIN", "DeformableDetr", "Detector"]
