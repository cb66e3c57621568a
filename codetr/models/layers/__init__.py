"""Building blocks of transformers."""

from codetr.models.layers.attention import DeformableAttention, SamplingFrame, SelfAttention
from codetr.models.layers.conditional import (
    ConditionalCrossAttention,
    ConditionalSelfAttention,
)
from codetr.models.layers.mlp import RELU, FeedForward, Mlp, ScaleMlp, xavier_matrices
from codetr.models.layers.position import sine_coordinates, sine_tokens

__all__ = [
    "RELU",
    "ConditionalCrossAttention",
    "ConditionalSelfAttention",
    "DeformableAttention",
    "FeedForward",
    "Mlp",
    "SamplingFrame",
    "ScaleMlp",
    "SelfAttention",
    "sine_coordinates",
    "sine_tokens",
    "xavier_matrices",
]
