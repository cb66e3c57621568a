"""Swin Transformer with detection tokens: reconfigured attention (ViDT, arXiv 2110.03921)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr.models.backbones.swin import check_architecture
from codetr.models.backbones.swin_stages import (
    PATCH,
    PatchEmbedding,
    PatchMerging,
    SwinBlock,
    initialise,
    swin_stages,
)
from codetr.models.backbones.swin_weights import load_swin_weights
from codetr.models.backbones.weights import initial_weights
from codetr.models.backbones.window_attention import MASKED, WindowAttention, shift_mask
from codetr.models.layers import sine_tokens
from codetr.structures import DetectionTokens, Pyramid, resize_mask

TEMPERATURE = 10000.0


class PatchPositions(NamedTuple):
    """The patches that tokens attend to, beside their features: ``position`` (B, S, C) and
    ``padding`` (B, S) bool, True where there is no image.
    """

    position: Tensor
    padding: Tensor


class TokenAttention(nn.Module):
    """The addition to a Swin block for tokens: a projection of their positions to its width.
    Everything else is shared with the block.
    """

    def __init__(self, dim: int, position_width: int) -> None:
        super().__init__()
        self.position = nn.Linear(position_width, dim)

    def forward(
        self,
        block: SwinBlock,
        cells: Tensor,
        tokens: Tensor,
        shift: Tensor,
        positions: Tensor,
        seen: PatchPositions | None,
    ) -> tuple[Tensor, Tensor]:
        """``cells`` (B, H, W, C) and ``tokens`` (B, Q, C) to the same. ``shift`` is the block's
        mask; ``positions`` (Q, D) those of the tokens; ``seen``: they attend to the patches too.
        """
        normed = block.norm1(cells)
        queries = block.norm1(tokens) + self.position(positions)
        patches, bias = None, None
        if seen is not None:
            patches = normed.flatten(1, 2) + seen.position
            masked = seen.padding.to(queries.dtype) * MASKED
            bias = F.pad(masked, (tokens.shape[1], 0))[:, None, None]
        attended = block.attend(normed, shift), attend(block.attn, queries, patches, bias)
        cells, tokens = _added(block, (cells, tokens), attended)
        transformed = block.mlp(block.norm2(cells)), block.mlp(block.norm2(tokens))
        return _added(block, (cells, tokens), transformed)


def attend(
    attention: WindowAttention, tokens: Tensor, patches: Tensor | None, bias: Tensor | None
) -> Tensor:
    """``tokens`` (B, Q, C) attend to themselves and to ``patches`` (B, S, C), with a window's
    weights but without its relative positions: (B, Q, C). ``bias``, broadcast to (B, heads, Q,
    Q + S), is added to the logits.
    """
    weight, offset = attention.qkv.weight, attention.qkv.bias
    dim = tokens.shape[-1]
    context = tokens if patches is None else torch.cat([tokens, patches], dim=1)
    query = F.linear(tokens, weight[:dim], offset[:dim])
    key, value = F.linear(context, weight[dim:], offset[dim:]).chunk(2, dim=-1)
    query, key, value = (
        x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (query, key, value)
    )
    bias = None if bias is None else bias.to(query.dtype)
    attended = F.scaled_dot_product_attention(query, key, value, bias)
    found: Tensor = attention.proj(attended.transpose(1, 2).flatten(2))
    return found


def _added(
    block: SwinBlock, streams: tuple[Tensor, Tensor], branches: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Cells and tokens plus their branches; stochastic depth skips both together."""
    (cells, tokens), (cell_branch, token_branch) = streams, branches
    if block.training and block.drop_path.drop_prob:
        kept = block.drop_path(tokens.new_ones(len(tokens), 1, 1))
        cell_branch, token_branch = cell_branch * kept[..., None], token_branch * kept
    return cells + cell_branch, tokens + token_branch


def _widened(merging: PatchMerging, tokens: Tensor) -> Tensor:
    """Tokens (B, Q, C) with the next stage's width, as if each were four equal cells."""
    widened: Tensor = merging.reduction(merging.norm(tokens.repeat(1, 1, 4)))
    return widened


class SwinTrunk(nn.Module):
    """The parts that a Swin Transformer has without tokens, under its official names."""

    def __init__(self, patch_embed: nn.Module, layers: nn.ModuleList) -> None:
        super().__init__()
        self.patch_embed, self.layers = patch_embed, layers


class TokenSwinBackbone(nn.Module):
    """A Swin Transformer through which ``num_tokens`` detection tokens pass (section 3.1).

    Patches attend within windows, as in any Swin Transformer. With the same weights, tokens attend
    to each other and, in the last stage, to all patches, to which a sine position is added for
    that; patches do not attend to tokens. The last stage also merges its patches, to ``last_width``
    channels: the maps are those of all stages but the first, and the merged one.

    Args:
        name, embed_dim, depths, heads, window, pretrained, weights, drop_path_rate, mean, std: see
            ``SwinBackbone``.
        num_tokens: Q.
        position_width: D of the learned positions of tokens, which every block projects to its
            own width.
        last_width: channels of the coarsest map.

    Raises UserError for an impossible architecture, two sources of weights, and weights that do
    not fit.
    """

    def __init__(
        self,
        name: str,
        embed_dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        num_tokens: int = 100,
        position_width: int = 256,
        last_width: int = 256,
        pretrained: bool = False,
        weights: str | None = None,
        drop_path_rate: float = 0.0,
        mean: tuple[float, float, float] = (123.675, 116.28, 103.53),
        std: tuple[float, float, float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        check_architecture(name, embed_dim, depths, heads)
        count = len(depths)
        widths = [embed_dim * 2**i for i in range(count)]
        self.channels = (*widths[1:], last_width)
        self.strides = tuple(PATCH * 2**i for i in range(1, count + 1))
        stages = swin_stages(embed_dim, depths, heads, window, drop_path_rate, 0, count)
        self.body = SwinTrunk(PatchEmbedding(embed_dim), stages)
        self.merging = PatchMerging(widths[-1], last_width)
        self.attention = nn.ModuleList(
            nn.ModuleList(TokenAttention(width, position_width) for _ in range(depth))
            for width, depth in zip(widths, depths, strict=True)
        )
        self.apply(initialise)
        self.tokens = nn.Parameter(torch.empty(num_tokens, embed_dim))
        self.positions = nn.Parameter(torch.empty(num_tokens, position_width))
        for learned in (self.tokens, self.positions):
            nn.init.trunc_normal_(learned, std=0.02)
        if initial := initial_weights(name, pretrained, weights):
            load_swin_weights(self.body, *initial)

    def forward(self, pixels: Tensor, padding: Tensor | None = None) -> Pyramid:
        """(B, 3, H, W) normalised pixels to maps (B, C_l, H_l, W_l), and the tokens of the last
        stage with their positions.
        """
        layers: Any = self.body.layers
        attentions: Any = self.attention
        cells = self.body.patch_embed(pixels)
        tokens = self.tokens.expand(cells.shape[0], -1, -1)
        outputs, last = [], len(self.attention) - 1
        for i, stage in enumerate(layers):
            shift = shift_mask(cells, stage.window, stage.window // 2)
            seen = self._patches(cells, padding) if i == last else None
            for block, attention in zip(stage.blocks, attentions[i], strict=True):
                cells, tokens = attention(block, cells, tokens, shift, self.positions, seen)
            outputs.append(cells)
            if stage.downsample is not None:
                cells = stage.downsample(cells)
                tokens = _widened(stage.downsample, tokens)
        maps = [cells.permute(0, 3, 1, 2) for cells in (*outputs[1:], self.merging(outputs[-1]))]
        found = DetectionTokens(content=tokens, position=self.positions)
        return Pyramid(maps=tuple(maps), strides=self.strides, detection=found)

    def _patches(self, cells: Tensor, padding: Tensor | None) -> PatchPositions:
        """Of the last stage's ``cells`` (B, H, W, C)."""
        shape = (cells.shape[1], cells.shape[2])
        if padding is None:
            padding = cells.new_zeros(cells.shape[0], *shape, dtype=torch.bool)
        padding = resize_mask(padding, shape)
        position = sine_tokens([padding], cells.shape[-1], TEMPERATURE, 0.0, self.positions)
        return PatchPositions(position, padding.flatten(1))
