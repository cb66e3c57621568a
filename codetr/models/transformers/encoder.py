"""The deformable encoder: from a pyramid of maps to a memory of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codetr.models.layers import DeformableAttention, FeedForward, SamplingFrame, sine_tokens
from codetr.structures import Memory, Pyramid


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention over all levels and a feed-forward block, post-norm."""

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
        self.attention = DeformableAttention(dim, heads, levels, points, dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.feed_forward.expand.weight)
        nn.init.xavier_uniform_(self.feed_forward.contract.weight)

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        frame: SamplingFrame,
        padding: Tensor,
        shapes: tuple[tuple[int, int], ...],
    ) -> Tensor:
        """(B, S, C) tokens to (B, S, C); ``frame`` is that of the tokens' cells."""
        attended = self.attention(tokens, position, frame, tokens, padding, shapes)
        return self.feed_forward_norm(self.feed_forward(self.attention_norm(attended)))


class DeformableEncoder(nn.Module):
    """Encodes a pyramid (Deformable DETR, section 4).

    ``layer`` builds one layer; ``temperature`` and ``offset`` are those of the sine encoding
    (Co-DINO 20 and 0, Deformable DETR 10000 and -0.5); the first ``checkpointed`` layers
    recompute their activations in the backward pass.
    """

    def __init__(
        self,
        layer: Callable[[], DeformableEncoderLayer],
        num_layers: int = 6,
        dim: int = 256,
        levels: int = 4,
        temperature: float = 10000.0,
        offset: float = -0.5,
        checkpointed: int = 0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        self.level_embed = nn.Parameter(torch.randn(levels, dim))
        self.temperature, self.offset = temperature, offset
        self.checkpointed = checkpointed

    def forward(self, pyramid: Pyramid, padding: Tensor) -> Memory:
        """``pyramid`` of (B, C, H_l, W_l) maps; ``padding`` (B, H, W) of the images."""
        if len(pyramid.maps) != len(self.level_embed):
            raise ValueError(
                f"the neck gives {len(pyramid.maps)} levels but the encoder is made for "
                f"{len(self.level_embed)}: set model.levels to the neck's number"
            )
        masks = pyramid.masks(padding)
        memory = pyramid.memory(masks)
        tokens = memory.tokens
        position = sine_tokens(
            masks, tokens.shape[-1], self.temperature, self.offset, self.level_embed
        )
        sizes = [height * width for height, width in pyramid.shapes]
        level = [e.expand(n, -1) for e, n in zip(self.level_embed, sizes, strict=True)]
        position = position + torch.cat(level)
        references = _cell_references(pyramid.shapes, memory.valid_ratios)
        frame = self.layers[0].attention.frame(references, pyramid.shapes)  # type: ignore[operator, union-attr]
        for i, layer in enumerate(self.layers):
            arguments = (tokens, position, frame, memory.padding, pyramid.shapes)
            if i < self.checkpointed and self.training and torch.is_grad_enabled():
                tokens = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                tokens = layer(*arguments)
        return replace(memory, tokens=tokens)


def _cell_references(shapes: tuple[tuple[int, int], ...], valid_ratios: Tensor) -> Tensor:
    """(B, S, L, 2) centre of each token's cell, relative to the valid area, on every level."""
    centres = []
    for level, (height, width) in enumerate(shapes):
        options: dict[str, Any] = {"dtype": valid_ratios.dtype, "device": valid_ratios.device}
        valid = valid_ratios[:, level, :, None]  # (B, 2, 1), x and y
        x = (torch.arange(width, **options) + 0.5) / (valid[:, 0] * width)
        y = (torch.arange(height, **options) + 0.5) / (valid[:, 1] * height)
        grid = torch.stack(
            [x[:, None].expand(-1, height, -1), y[..., None].expand(-1, -1, width)], -1
        )
        centres.append(grid.flatten(1, 2))
    return torch.cat(centres, dim=1)[:, :, None] * valid_ratios[:, None]
