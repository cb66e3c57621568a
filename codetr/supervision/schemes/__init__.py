"""Training schemes: everything that exists only to train."""

from codetr.supervision.schemes.collaborative import (
    Collaborative,
    CoordinateEmbedding,
    CoordinateFeatureEmbedding,
)
from codetr.supervision.schemes.denoising import Denoising
from codetr.supervision.schemes.group import Group
from codetr.supervision.schemes.hybrid import Hybrid
from codetr.supervision.schemes.instance_masks import InstanceMasks
from codetr.supervision.schemes.mixed import Mixed
from codetr.supervision.schemes.one_to_one import OneToOne
from codetr.supervision.schemes.protocol import Proposal, Scheme, Start
from codetr.supervision.schemes.query_denoising import QueryDenoising
from codetr.supervision.schemes.scoring import Score, matched, measured, scored
from codetr.supervision.schemes.teacher import Teacher

__all__ = [
    "Collaborative",
    "CoordinateEmbedding",
    "CoordinateFeatureEmbedding",
    "Denoising",
    "Group",
    "Hybrid",
    "InstanceMasks",
    "Mixed",
    "OneToOne",
    "Proposal",
    "QueryDenoising",
    "Scheme",
    "Score",
    "Start",
    "Teacher",
    "matched",
    "measured",
    "scored",
]
