"""Attention with separate projections of content and position (Conditional DETR, arXiv 2108.06152,
section 3.2), residuals included.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr.errors import UserError
from codetr.models.layers.mlp import xavier_matrices


class _Attention(nn.Module):
    """Shared by both kinds of attention: heads, output projection and dropout."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"model.dim={dim} must be a multiple of model.heads={heads}")
        self.heads = heads
        self.value = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.attention_dropout = dropout
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Xavier initialisation of all matrices; the bias of the output projection is 0."""
        xavier_matrices(self)
        nn.init.zeros_(self.out_proj.bias)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def attend(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """``x`` (B, Q, C) plus the projected result of attention by its ``query`` (B, heads, Q, E)
        to ``key`` and ``value``.
        """
        attended = F.scaled_dot_product_attention(
            query,
            key,
            self.split(value),
            attn_mask=mask,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        return x + self.dropout(self.out_proj(attended.transpose(-3, -2).flatten(-2)))


class ConditionalSelfAttention(_Attention):
    """Among queries: the projections of content and position are added."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, heads, dropout)
        self.query_content, self.query_position = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key_content, self.key_position = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.reset_parameters()

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, Q, C) to (B, Q, C); ``mask`` as in ``SelfAttention``."""
        query = self.query_content(x) + self.query_position(position)
        key = self.key_content(x) + self.key_position(position)
        return self.attend(x, self.split(query), self.split(key), self.value(x), mask)


class ConditionalCrossAttention(_Attention):
    """To the tokens of a memory. Each head concatenates content and position, so that a score is
    the sum of a content score and a position score. In the ``first`` layer of a decoder, whose
    content carries no information yet, positions are added to the contents as well.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, first: bool = False) -> None:
        super().__init__(dim, heads, dropout)
        self.query_content, self.key_content = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.query_sine, self.key_position = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.query_position = nn.Linear(dim, dim) if first else None
        self.reset_parameters()

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        sine: Tensor,
        tokens: Tensor,
        token_position: Tensor,
        padding: Tensor,
    ) -> Tensor:
        """(B, Q, C) to (B, Q, C). Only the first layer uses the ``position`` (B, Q, C) of the
        queries; ``sine`` (B, Q, C) encodes their centres in the same way as ``token_position``
        (B, S, C) those of the ``tokens`` (B, S, C); ``padding`` (B, S) is True where a token is
        padding.
        """
        query, key = self.query_content(x), self.key_content(tokens)
        where = self.key_position(token_position)
        if self.query_position is not None:
            query, key = query + self.query_position(position), key + where
        query = torch.cat([self.split(query), self.split(self.query_sine(sine))], dim=-1)
        key = torch.cat([self.split(key), self.split(where)], dim=-1)
        return self.attend(x, query, key, self.value(tokens), ~padding[:, None, None])
