"""Losses under a given assignment."""

from codetr.criteria.set_criterion import (
    FocalClassification,
    QualityClassification,
    SetCriterion,
    deep_supervision,
    normaliser,
)

__all__ = [
    "FocalClassification",
    "QualityClassification",
    "SetCriterion",
    "deep_supervision",
    "normaliser",
]
