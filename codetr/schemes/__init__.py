"""Training schemes: everything that exists only to train."""

from codetr.schemes.collaborative import (
    Collaborative,
    CoordinateEmbedding,
    CoordinateFeatureEmbedding,
)
from codetr.schemes.denoising import Denoising
from codetr.schemes.one_to_one import OneToOne
from codetr.schemes.protocol import Proposal, Scheme

__all__ = [
    "Collaborative",
    "CoordinateEmbedding",
    "CoordinateFeatureEmbedding",
    "Denoising",
    "OneToOne",
    "Proposal",
    "Scheme",
]
