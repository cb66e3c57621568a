"""The deformable decoder with iterative box refinement."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from codetr.models.heads import Embeddings, Head
from codetr.models.layers import (
    DeformableAttention,
    FeedForward,
    Mlp,
    SelfAttention,
    sine_coordinates,
)
from codetr.models.transformers.protocol import DecoderOutput
from codetr.structures import CROSS_ATTENTION, Memory, Predictions, Queries, Tap


class LayerOutput(NamedTuple):
    """``content`` (B, Q, C) for the heads and the next layer; ``attended`` (B, Q, C), what left the
    cross-attention.
    """

    content: Tensor
    attended: Tensor


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
        """``anchors`` cxcywh, encoded in the order y, x, w, h as DINO does."""
        x, y, width, height = anchors.unbind(-1)
        encoding = sine_coordinates(
            torch.stack([y, x, width, height], -1), self.dim // 2, self.temperature
        )
        return self.mlp(encoding)


class DeformableDecoder(nn.Module):
    """Decodes queries layer by layer, refining their anchors.

    ``layer`` builds one layer. ``anchor_position`` embeds the anchors anew in every layer (DINO);
    None where queries bring a fixed position (Deformable DETR). ``norm`` is applied to every
    layer's output before the heads read it, but anchors are refined from the output before it
    (DINO); None for no norm. ``look_forward_twice`` lets a layer's box loss reach the previous
    layer through the refined anchors (DINO, section 3.5). Without ``refine`` every layer predicts
    relative to the first anchors (plain Deformable DETR). ``eps`` clamps the inverse sigmoid of
    anchors. Its taps are called ``CROSS_ATTENTION``.
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
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        self.anchor_position = anchor_position
        self.norm = norm
        self.look_forward_twice = look_forward_twice
        self.eps = eps
        self.refine = refine

    def forward(
        self, queries: Queries, memory: Memory, head: Head, mask: Tensor | None
    ) -> DecoderOutput:
        """Every layer's answer for ``queries``, whose anchors are boxes (B, Q, 4) or points
        (B, Q, 2); ``mask`` as in ``SelfAttention``.
        """
        content = queries.content
        anchors = queries.anchors  # what attention looks at
        basis = anchors  # what the head refines: with gradient under look forward twice
        predictions, taps = [], []
        for i, layer in enumerate(self.layers):
            ratios = memory.valid_ratios.repeat(1, 1, anchors.shape[-1] // 2)
            references = anchors[:, :, None] * ratios[:, None]  # (B, Q, L, 4 or 2)
            position = self._position(queries, references)
            content, attended = layer(content, position, references, memory, mask)
            embeddings = head.layer(i)
            read = partial(self._predict, embeddings)
            predictions.append(read(content, basis))
            taps.append(Tap(hidden=attended, anchors=basis, read=read))
            if self.refine:
                refined = embeddings.boxes(content, anchors, self.eps)
                anchors = refined.detach()
                basis = refined if self.look_forward_twice else anchors
        return DecoderOutput(layers=tuple(predictions), taps={CROSS_ATTENTION: tuple(taps)})

    def _predict(self, embeddings: Embeddings, hidden: Tensor, anchors: Tensor) -> Predictions:
        normed = hidden if self.norm is None else self.norm(hidden)
        return embeddings(normed, anchors, self.eps)

    def _position(self, queries: Queries, references: Tensor) -> Tensor:
        if self.anchor_position is not None:
            return self.anchor_position(references[:, :, 0])
        if queries.position is None:
            raise ValueError(
                "these queries bring no position: give the decoder an anchor_position, or use a "
                "query initialisation that embeds positions"
            )
        return queries.position
