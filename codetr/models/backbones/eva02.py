"""EVA-02, a plain vision transformer, as the trunk of a detector.

Fang et al. 2023, "EVA-02: A Visual Representation for Neon Genesis" (arXiv 2303.11331), with the
windows of Li et al. 2022, "Exploring Plain Vision Transformer Backbones" (arXiv 2203.16527).
Parameter names are those of the official Co-DETR (mmdet/models/backbones/vit.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codetr.errors import UserError
from codetr.models.backbones.eva02_weights import load_trunk_weights
from codetr.models.backbones.weights import initial_weights
from codetr.models.backbones.window_attention import join_windows, pad_cells, split_windows
from codetr.models.layers.rotary import rotary_table, rotate
from codetr.structures import Pyramid

PATCH = 16
"""Side of a patch in pixels, which is the stride of the map."""
EPS = 1e-6
"""Epsilon of all layer norms but the last."""


class PatchEmbed(nn.Module):
    """One token per patch; pixels beyond the last whole patch are ignored."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, H // 16, W // 16, C)."""
        return self.proj(pixels).permute(0, 2, 3, 1)


class SwiGlu(nn.Module):
    """Gated feed-forward block (Shazeer 2020) with a layer norm before its last projection."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, EPS)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.w3(self.ffn_ln(F.silu(self.w1(tokens)) * self.w2(tokens)))


class Attention(nn.Module):
    """Multi-head self-attention with rotated queries and keys; keys have no bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def forward(self, tokens: Tensor, rotation: Tensor) -> Tensor:
        """(B, S, C) to (B, S, C); ``rotation`` (2, S, C / heads) is of ``rotary_table``."""
        query = self._split(F.linear(tokens, self.q_proj.weight, self.q_bias))
        key = self._split(self.k_proj(tokens))
        value = self._split(F.linear(tokens, self.v_proj.weight, self.v_bias))
        attended = F.scaled_dot_product_attention(
            rotate(query, rotation), rotate(key, rotation), value
        )
        return self.proj(attended.transpose(-3, -2).flatten(-2))


class Block(nn.Module):
    """Pre-norm attention and feed-forward block, each with stochastic depth.

    ``window`` is the side of the windows of attention; 0: global attention.
    """

    def __init__(self, dim: int, heads: int, hidden: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = Attention(dim, heads)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = SwiGlu(dim, hidden)

    def forward(self, grid: Tensor, rotation: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        _, height, width, _ = grid.shape
        tokens = self.norm1(grid)
        if self.window:
            attended = self.attn(to_windows(tokens, self.window), rotation)
            attended = from_windows(attended, self.window, height, width)
        else:
            attended = self.attn(tokens.flatten(1, 2), rotation).unflatten(1, (height, width))
        grid = grid + self.drop_path(attended)
        return grid + self.drop_path(self.mlp(self.norm2(grid)))


class Eva02Trunk(nn.Module):
    """Patches and positions, blocks with windows, a norm: the last map alone.

    Args:
        depth, dim, heads, hidden: number of blocks, their width, heads and inner width.
        positions: side of the square table of absolute positions, resized to each image's grid.
        window: side of the windows, in patches. The last windows of a row or column are padded
            with zeros, which are attended to like any other token.
        global_blocks: indices of the blocks without windows.
        drop_path: stochastic depth, rising linearly from 0 to this rate in the last block.
        checkpointed: number of blocks, from the first, that recompute their activations in the
            backward pass: less memory, more time.

    Raises UserError where ``heads`` do not fit ``dim`` or a global block does not exist.
    """

    def __init__(
        self,
        *,
        depth: int = 24,
        dim: int = 1024,
        heads: int = 16,
        hidden: int = 2730,
        positions: int = 32,
        window: int = 24,
        global_blocks: Collection[int] = (3, 7, 11, 15, 19, 23),
        drop_path: float = 0.0,
        checkpointed: int = 0,
    ) -> None:
        super().__init__()
        if dim % (4 * heads):
            raise UserError(
                f"model.backbone.body.dim={dim} with model.backbone.body.heads={heads}: each head "
                "needs a multiple of 4 channels for its rotations"
            )
        if not set(global_blocks) <= set(range(depth)):
            raise UserError(
                f"model.backbone.body.global_blocks={list(global_blocks)}: give blocks from 0 to "
                f"{depth - 1}"
            )
        self.dim, self.head_dim = dim, dim // heads
        self.checkpointed = checkpointed
        self.patch_embed = PatchEmbed(dim)
        # The first row belongs to the class token of pretraining, which a detector does not have.
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + positions**2, dim))
        self.window = window
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                hidden,
                window=0 if i in global_blocks else window,
                drop_path=drop_path * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )
        self.out_norm = nn.LayerNorm(dim)
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, C, H // 16, W // 16)."""
        grid = self.patch_embed(pixels)
        _, height, width, _ = grid.shape
        grid = grid + resize_positions(self.pos_embed[:, 1:], height, width)
        in_window = self._rotation(self.window, self.window, grid)
        everywhere = self._rotation(height, width, grid)
        for i, block in enumerate(self.blocks):
            rotation = in_window if block.window else everywhere
            if i < self.checkpointed and self.training and torch.is_grad_enabled():
                grid = checkpoint(block, grid, rotation, use_reentrant=False)
            else:
                grid = block(grid, rotation)
        return self.out_norm(grid).permute(0, 3, 1, 2).contiguous()

    def _rotation(self, height: int, width: int, like: Tensor) -> Tensor:
        """The table of a grid, at least in float32."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return rotary_table(height, width, self.head_dim, dtype=dtype, device=like.device)


class Eva02Backbone(nn.Module):
    """A trunk as a backbone: one map of stride 16, with the interface of ``TimmBackbone``.

    Args:
        body: the trunk.
        name: timm's name of the weights that ``pretrained`` stands for.
        pretrained: fetch them from timm's hub.
        weights: a .safetensors or .pth file with official or timm's parameter names instead.
        mean, std: see ``TimmBackbone``.

    Weights of another patch size or table of positions are resized. Raises UserError where both
    sources are given or a file does not fit.
    """

    def __init__(
        self,
        body: Eva02Trunk,
        name: str = "eva02_large_patch14_224.mim_m38m",
        pretrained: bool = False,
        weights: str | None = None,
        mean: tuple[float, float, float] = (123.675, 116.28, 103.53),
        std: tuple[float, float, float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        self.channels: tuple[int, ...] = (body.dim,)
        self.strides: tuple[int, ...] = (PATCH,)
        if initial := initial_weights(name, pretrained, weights):
            load_trunk_weights(body, *initial)
        self.body = body

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the trunk."""
        return list(self.body.blocks)

    def forward(self, pixels: Tensor, padding: Tensor | None = None) -> Pyramid:
        """(B, 3, H, W) normalised pixels to one map (B, C, H // 16, W // 16).

        Sides should be multiples of 32 (``data.size_divisor``): pixels beyond the last whole
        patch are ignored, as in the official code.
        """
        return Pyramid(maps=(self.body(pixels),), strides=self.strides)


def resize_positions(table: Tensor, height: int, width: int) -> Tensor:
    """(1, height, width, C) of a square ``table`` (1, n * n, C), by bicubic interpolation without
    antialiasing; as it is where the size fits.
    """
    side = math.isqrt(table.shape[1])
    square = table.unflatten(1, (side, side))
    if (side, side) == (height, width):
        return square
    resized = F.interpolate(
        square.permute(0, 3, 1, 2), (height, width), mode="bicubic", align_corners=False
    )
    return resized.permute(0, 2, 3, 1)


def to_windows(grid: Tensor, side: int) -> Tensor:
    """(B, H, W, C) to windows (B * n, side * side, C), row by row, zeros right and below."""
    return split_windows(pad_cells(grid, side), side).flatten(0, 1)


def from_windows(windows: Tensor, side: int, height: int, width: int) -> Tensor:
    """Undo ``to_windows``: (B * n, side * side, C) to (B, height, width, C)."""
    rows, columns = -(-height // side), -(-width // side)
    cut = windows.unflatten(0, (-1, rows * columns))
    return join_windows(cut, side, (rows, columns))[:, :height, :width]
