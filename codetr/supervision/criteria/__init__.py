"""Losses under a given assignment."""

from codetr.supervision.criteria.federated import FederatedClassification
from codetr.supervision.criteria.set_criterion import (
    FocalClassification,
    QualityClassification,
    SetCriterion,
    Supervised,
    by_layer,
    deep_supervision,
    matched_pairs,
    supervised,
)
from codetr.supervision.criteria.softmax import SoftmaxClassification

__all__ = [
    "FederatedClassification",
    "FocalClassification",
    "QualityClassification",
    "SetCriterion",
    "SoftmaxClassification",
    "Supervised",
    "by_layer",
    "deep_supervision",
    "matched_pairs",
    "supervised",
]
