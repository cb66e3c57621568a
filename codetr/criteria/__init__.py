"""Losses under a given assignment."""

from codetr.criteria.federated import FederatedClassification
from codetr.criteria.set_criterion import (
    FocalClassification,
    QualityClassification,
    SetCriterion,
    deep_supervision,
    normaliser,
)

__all__ = [
    "FederatedClassification",
    "FocalClassification",
    "QualityClassification",
    "SetCriterion",
    "deep_supervision",
    "normaliser",
]
