"""The deformable decoder with iterative box refinement."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from codetr.models.heads import Head
from codetr.models.layers import (
    DeformableAttention,
    FeedForward,
    Mlp,
    SelfAttention,
    sine_coordinates,
)
from codetr.models.transformers.protocol import DecoderOutput
from codetr.models.transformers.refinement import LayerOutput, decode
from codetr.structures import CROSS_ATTENTION, Memory, Queries


class DeformableDecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention and a feed-forward block, post-norm."""

    def __init__(
        self,
        dim: int = 256,
        heads: int = 8,
        levels: int = 4,
        points: int = 4,
        hidden: int = 2048,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attention = SelfAttention(dim, heads, dropout)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(dim, heads, levels, points, dropout)
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        for projection in (
            self.self_attention.in_proj,
            self.self_attention.out_proj,
            self.feed_forward.expand,
            self.feed_forward.contract,
        ):
            nn.init.xavier_uniform_(projection.weight)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        references: Tensor,
        memory: Memory,
        mask: Tensor | None,
    ) -> LayerOutput:
        """From (B, Q, C) content; ``references`` (B, Q, L, 4); ``mask`` as in
        ``SelfAttention``.
        """
        x = self.self_attention_norm(self.self_attention(content, position, mask))
        attended = self.attend(x, position, references, memory)
        return LayerOutput(self.feed_forward_norm(self.feed_forward(attended)), attended)

    def attend(self, x: Tensor, position: Tensor, references: Tensor, memory: Memory) -> Tensor:
        """Cross-attention and its norm: (B, Q, C) to (B, Q, C)."""
        frame = self.cross_attention.frame(references, memory.shapes)
        return self.cross_attention_norm(
            self.cross_attention(x, position, frame, memory.tokens, memory.padding, memory.shapes)
        )


class CrossFirstDecoderLayer(DeformableDecoderLayer):
    """The parts of ``DeformableDecoderLayer`` in the order cross-attention, self-attention,
    feed-forward block.

    The output of the cross-attention does not depend on the other queries of this layer, which
    compete for targets, so that it can be supervised with several queries per target.
    Source: MS-DETR (arXiv 2401.03989), section 3.3; official ``models/deformable_transformer.py``
    with ``use_ms_detr``.
    """

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        references: Tensor,
        memory: Memory,
        mask: Tensor | None,
    ) -> LayerOutput:
        """As ``DeformableDecoderLayer``."""
        attended = self.attend(content, position, references, memory)
        x = self.self_attention_norm(self.self_attention(attended, position, mask))
        return LayerOutput(self.feed_forward_norm(self.feed_forward(x)), attended)


class AnchorPosition(nn.Module):
    """Position embedding of the current anchors (DAB-DETR, DINO): (B, Q, 4) to (B, Q, C)."""

    def __init__(self, dim: int = 256, temperature: float = 10000.0) -> None:
        super().__init__()
        self.dim, self.temperature = dim, temperature
        self.mlp = Mlp(2 * dim, dim, dim)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, anchors: Tensor) -> Tensor:
        """``anchors`` (B, Q, 4) cxcywh."""
        return self.mlp(self.encode(anchors))

    def encode(self, anchors: Tensor) -> Tensor:
        """Their sines (B, Q, 2C), C / 2 for each of y, x, w, h, in this order as DINO has it."""
        x, y, width, height = anchors.unbind(-1)
        ordered = torch.stack([y, x, width, height], -1)
        return sine_coordinates(ordered, self.dim // 2, self.temperature)


class DeformableDecoder(nn.Module):
    """Decodes queries layer by layer, refining their anchors.

    ``layer`` builds one layer. ``anchor_position`` embeds the current anchors in every layer
    (DINO); None where queries have a fixed position (Deformable DETR). ``norm``, ``eps``,
    ``refine`` and ``look_forward_twice``: see ``decode``.
    """

    groups = True

    def __init__(
        self,
        layer: Callable[[], DeformableDecoderLayer],
        num_layers: int = 6,
        anchor_position: AnchorPosition | None = None,
        norm: nn.Module | None = None,
        look_forward_twice: bool = True,
        eps: float = 1e-5,
        refine: bool = True,
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.taps = {CROSS_ATTENTION: num_layers}
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        self.anchor_position = anchor_position
        self.norm = norm
        self.look_forward_twice = look_forward_twice
        self.eps = eps
        self.refine = refine

    def forward(
        self, queries: Queries, memory: Memory, head: Head, mask: Tensor | None
    ) -> DecoderOutput:
        """Every layer's predictions for ``queries``, whose anchors are boxes (B, Q, 4) or points
        (B, Q, 2); ``mask`` as in ``SelfAttention``.
        """

        def step(i: int, content: Tensor, anchors: Tensor) -> LayerOutput:
            ratios = memory.valid_ratios.repeat(1, 1, anchors.shape[-1] // 2)
            references = anchors[:, :, None] * ratios[:, None]  # (B, Q, L, 4 or 2)
            position = self._position(queries, references)
            layer: DeformableDecoderLayer = self.layers[i]  # type: ignore[assignment]
            return layer(content, position, references, memory, mask)

        return decode(
            step, queries, head, self.norm, self.eps, self.refine, self.look_forward_twice
        )

    def _position(self, queries: Queries, references: Tensor) -> Tensor:
        if self.anchor_position is not None:
            return self.anchor_position(references[:, :, 0])
        if queries.position is None:
            raise ValueError(
                "these queries bring no position: give the decoder an anchor_position, or use a "
                "query initialisation that embeds positions"
            )
        return queries.position
