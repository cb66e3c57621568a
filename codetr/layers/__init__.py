"""Building blocks of transformers."""

from codetr.layers.attention import DeformableAttention, SelfAttention
from codetr.layers.mlp import FeedForward, Mlp
from codetr.layers.position import sine_coordinates, sine_map

__all__ = [
    "DeformableAttention",
    "FeedForward",
    "Mlp",
    "SelfAttention",
    "sine_coordinates",
    "sine_map",
]
