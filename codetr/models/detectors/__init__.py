"""Detectors: encode, queries, decode."""

from codetr.models.detectors.detr import Detr
from codetr.models.detectors.protocol import MAIN, Detector

__all__ = ["MAIN", "Detector", "Detr"]
