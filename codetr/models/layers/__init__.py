"""Building blocks of transformers."""

from codetr.models.layers.attention import DeformableAttention, SamplingFrame, SelfAttention
from codetr.models.layers.mlp import FeedForward, Mlp
from codetr.models.layers.position import sine_coordinates, sine_tokens

__all__ = [
    "DeformableAttention",
    "FeedForward",
    "Mlp",
    "SamplingFrame",
    "SelfAttention",
    "sine_coordinates",
    "sine_tokens",
]
