"""The encoder with dense attention among all tokens of one map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from codetr.errors import UserError
from codetr.models.layers import RELU, FeedForward, SelfAttention, sine_tokens, xavier_matrices
from codetr.structures import Memory, Pyramid


class DenseEncoderLayer(nn.Module):
    """Self-attention and a feed-forward block, post-norm (DETR, section 3.2)."""

    def __init__(
        self,
        dim: int = 256,
        heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = RELU,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, heads, dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, hidden, dropout, activation)
        self.feed_forward_norm = nn.LayerNorm(dim)
        xavier_matrices(self)

    def forward(self, tokens: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """(B, S, C) tokens to (B, S, C); ``mask`` (B, 1, 1, S) bool, True where there is image."""
        attended = self.attention_norm(self.attention(tokens, position, mask))
        return self.feed_forward_norm(self.feed_forward(attended))


class DenseEncoder(nn.Module):
    """Encodes one map; the memory includes the positions of its tokens.

    ``layer`` builds one layer; ``temperature`` is that of the sine encoding (DETR and Conditional
    DETR 10000, DAB-DETR 20). ``position_scale`` (``ScaleMlp``), shared by all layers, predicts from
    a layer's input the factors of its positions (DAB-DETR); None: positions are not scaled.
    """

    def __init__(
        self,
        layer: Callable[[], DenseEncoderLayer],
        num_layers: int = 6,
        temperature: float = 10000.0,
        position_scale: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        self.temperature = temperature
        self.position_scale = position_scale

    def forward(self, pyramid: Pyramid, padding: Tensor) -> Memory:
        """``pyramid`` of one map (B, C, H, W); ``padding`` (B, H', W') of the images. Raises
        UserError for several maps: dense attention among all of their tokens would be slow.
        """
        if len(pyramid.maps) != 1:
            raise UserError(
                f"this encoder takes one map, and the neck gives {len(pyramid.maps)}: set "
                "model.backbone.out_indices to one level and model.neck to a Projection"
            )
        masks = pyramid.masks(padding)
        memory = pyramid.memory(masks)
        tokens, like = memory.tokens, next(self.parameters())
        position = sine_tokens(masks, tokens.shape[-1], self.temperature, 0.0, like)
        valid = ~memory.padding[:, None, None]
        for layer in self.layers:
            scaled = position
            if self.position_scale is not None:
                scaled = position * self.position_scale(tokens)
            tokens = layer(tokens, scaled, valid)
        return replace(memory, tokens=tokens, position=position)
