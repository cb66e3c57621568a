"""The decoder with conditional cross-attention, of Conditional DETR and DAB-DETR."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from codetr.models.heads import Head
from codetr.models.layers import (
    RELU,
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    FeedForward,
    Mlp,
    ScaleMlp,
    sine_coordinates,
    xavier_matrices,
)
from codetr.models.transformers.decoder import AnchorPosition
from codetr.models.transformers.protocol import DecoderOutput
from codetr.models.transformers.refinement import LayerOutput, decode
from codetr.structures import CROSS_ATTENTION, Memory, Queries

SMALLEST = 1e-5
"""Lower bound of box sizes in divisions: boxes of auxiliary heads may have no area."""


class QueryEncoding(NamedTuple):
    """Encodings of the queries' positions: ``position`` (B, Q, C) for attention among queries, and
    ``sine`` (B, Q, C), y before x, for attention to the memory.
    """

    position: Tensor
    sine: Tensor


class Spatial(Protocol):
    """An ``nn.Module`` that encodes the positions of queries in every layer."""

    def __call__(self, content: Tensor, anchors: Tensor, position: Tensor | None) -> QueryEncoding:
        """From ``content`` (B, Q, C), current ``anchors`` (B, Q, 2 or 4), and the ``position``
        (B, Q, C) of the queries, where they have one.
        """
        ...


class PointSpatial(nn.Module):
    """The learned position of queries, and the sine encoding of their points (Conditional DETR)."""

    def __init__(self, dim: int = 256, temperature: float = 10000.0) -> None:
        super().__init__()
        self.dim, self.temperature = dim, temperature

    def forward(self, content: Tensor, anchors: Tensor, position: Tensor | None) -> QueryEncoding:
        """See ``Spatial``; of boxes, the centres are the points. Raises ValueError for queries
        without position.
        """
        if position is None:
            raise ValueError("these queries bring no position: use queries that learn one")
        points = anchors[..., :2].flip(-1)
        return QueryEncoding(position, sine_coordinates(points, self.dim // 2, self.temperature))


class AnchorSpatial(nn.Module):
    """A position embedded from the current anchors, and the sine encoding of their centres,
    modulated by size (DAB-DETR, arXiv 2201.12329, section 4.4): each query predicts a reference
    size, and the channels of an axis are multiplied by its ratio to the anchor's size.
    """

    def __init__(self, dim: int = 256, temperature: float = 10000.0) -> None:
        super().__init__()
        self.embed = AnchorPosition(dim, temperature)
        self.wanted_size = Mlp(dim, dim, 2)
        xavier_matrices(self.wanted_size)

    def forward(self, content: Tensor, anchors: Tensor, position: Tensor | None) -> QueryEncoding:
        """See ``Spatial``; ``position`` is not used."""
        encoding = self.embed.encode(anchors)
        reference = self.wanted_size(content).sigmoid().to(anchors.dtype)  # width, height
        size = anchors[..., 2:].clamp(min=SMALLEST)
        along_x, along_y = (reference / size).unsqueeze(-2).unbind(-1)
        y, x, *_ = encoding.chunk(4, dim=-1)
        return QueryEncoding(
            self.embed.mlp(encoding), torch.cat([y * along_y, x * along_x], dim=-1)
        )


class ConditionalDecoderLayer(nn.Module):
    """Self-attention, conditional cross-attention and a feed-forward block, post-norm. ``first``:
    see ``ConditionalCrossAttention``.
    """

    def __init__(
        self,
        dim: int = 256,
        heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = RELU,
        first: bool = False,
    ) -> None:
        super().__init__()
        self.self_attention = ConditionalSelfAttention(dim, heads, dropout)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.cross_attention = ConditionalCrossAttention(dim, heads, dropout, first)
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, hidden, dropout, activation)
        self.feed_forward_norm = nn.LayerNorm(dim)
        xavier_matrices(self.feed_forward)

    def forward(
        self, content: Tensor, encoding: QueryEncoding, memory: Memory, mask: Tensor | None
    ) -> LayerOutput:
        """From (B, Q, C) content; ``mask`` as in ``SelfAttention``. The memory has a position."""
        assert memory.position is not None
        x = self.self_attention_norm(self.self_attention(content, encoding.position, mask))
        attended = self.cross_attention_norm(
            self.cross_attention(
                x, encoding.position, encoding.sine, memory.tokens, memory.position, memory.padding
            )
        )
        return LayerOutput(self.feed_forward_norm(self.feed_forward(attended)), attended)


class ConditionalDecoder(nn.Module):
    """Decodes queries layer by layer, by conditional cross-attention to all tokens.

    ``layer`` builds one layer, the first one with ``first=True``. ``spatial`` encodes the positions
    of queries; from the second layer on, its sine is multiplied by factors from the content
    (Conditional DETR, section 3.2). ``norm``, ``eps``, ``refine`` and ``look_forward_twice``: see
    ``decode``.
    """

    groups = True

    def __init__(
        self,
        layer: Callable[..., ConditionalDecoderLayer],
        spatial: Spatial,
        norm: nn.Module,
        num_layers: int = 6,
        dim: int = 256,
        eps: float = 1e-5,
        refine: bool = False,
        look_forward_twice: bool = True,
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.taps = {CROSS_ATTENTION: num_layers}
        self.layers = nn.ModuleList(layer(first=i == 0) for i in range(num_layers))
        self.spatial, self.norm = spatial, norm
        self.sine_scale = ScaleMlp(dim)
        self.eps, self.refine, self.look_forward_twice = eps, refine, look_forward_twice

    def forward(
        self, queries: Queries, memory: Memory, head: Head, mask: Tensor | None
    ) -> DecoderOutput:
        """See ``Decoder``; anchors are boxes (B, Q, 4) or points (B, Q, 2)."""

        def step(i: int, content: Tensor, anchors: Tensor) -> LayerOutput:
            encoding = self.spatial(content, anchors, queries.position)
            if i:
                encoding = encoding._replace(sine=encoding.sine * self.sine_scale(content))
            layer: ConditionalDecoderLayer = self.layers[i]  # type: ignore[assignment]
            return layer(content, encoding, memory, mask)

        return decode(
            step, queries, head, self.norm, self.eps, self.refine, self.look_forward_twice
        )
