"""Training schemes: everything that exists only to train."""

from codetr.schemes.collaborative import (
    Collaborative,
    CoordinateEmbedding,
    CoordinateFeatureEmbedding,
)
from codetr.schemes.denoising import Denoising
from codetr.schemes.group import Group
from codetr.schemes.hybrid import Hybrid
from codetr.schemes.mixed import Mixed
from codetr.schemes.one_to_one import OneToOne
from codetr.schemes.protocol import Proposal, Scheme
from codetr.schemes.teacher import Teacher

__all__ = [
    "Collaborative",
    "CoordinateEmbedding",
    "CoordinateFeatureEmbedding",
    "Denoising",
    "Group",
    "Hybrid",
    "Mixed",
    "OneToOne",
    "Proposal",
    "Scheme",
    "Teacher",
]
