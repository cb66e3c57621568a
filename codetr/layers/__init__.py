"""Building blocks of transformers."""

from codetr.layers.attention import DeformableAttention, SamplingFrame, SelfAttention
from codetr.layers.mlp import FeedForward, Mlp
from codetr.layers.position import sine_coordinates, sine_tokens

__all__ = [
    "DeformableAttention",
    "FeedForward",
    "Mlp",
    "SamplingFrame",
    "SelfAttention",
    "sine_coordinates",
    "sine_tokens",
]
