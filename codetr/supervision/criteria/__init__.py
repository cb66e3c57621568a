"""Losses under a given assignment."""

from codetr.supervision.criteria.class_losses import (
    FocalClassification,
    QualityClassification,
    SoftmaxClassification,
)
from codetr.supervision.criteria.federated import FederatedClassification
from codetr.supervision.criteria.set_criterion import (
    SetCriterion,
    Supervised,
    by_layer,
    known,
    matched_pairs,
    measure,
    supervised,
)

__all__ = [
    "FederatedClassification",
    "FocalClassification",
    "QualityClassification",
    "SetCriterion",
    "SoftmaxClassification",
    "Supervised",
    "by_layer",
    "known",
    "matched_pairs",
    "measure",
    "supervised",
]
