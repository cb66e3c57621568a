"""Stages of the Swin Transformer (Liu et al., ICCV 2021), which its backbones share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import DropPath, Mlp
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codetr.models.backbones.window_attention import (
    WindowAttention,
    join_windows,
    pad_cells,
    round_up,
    shift_mask,
    split_windows,
)

PATCH = 4
"""Pixels per side of a patch."""


class SwinBlock(nn.Module):
    """Window attention and an MLP, pre-norm. Windows are shifted by ``shift`` cells (equation 3);
    ``drop_path`` is the probability of skipping either branch in training.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, cells: Tensor, mask: Tensor) -> Tensor:
        """(B, H, W, C) to the same; ``mask`` is that of ``shift_mask``, for the padded size."""
        cells = cells + self.drop_path(self.attend(self.norm1(cells), mask))
        return cells + self.drop_path(self.mlp(self.norm2(cells)))

    def attend(self, cells: Tensor, mask: Tensor) -> Tensor:
        """Attention alone: (B, H, W, C) of ``norm1`` to the same."""
        height, width = cells.shape[1:3]
        # Padded cells are attended to like any other: the original masks only the shift.
        cells = pad_cells(cells, self.window)
        grid = (cells.shape[1] // self.window, cells.shape[2] // self.window)
        if self.shift:
            cells = cells.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(split_windows(cells, self.window), mask if self.shift else None)
        cells = join_windows(windows, self.window, grid)
        if self.shift:
            cells = cells.roll((self.shift, self.shift), dims=(1, 2))
        return cells[:, :height, :width]


class PatchMerging(nn.Module):
    """Merges 2 x 2 cells into one of ``width`` channels; None: 2 * ``dim`` (section 3.1)."""

    def __init__(self, dim: int, width: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim if width is None else width, bias=False)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), width); odd sizes are padded by zeros."""
        cells = pad_cells(cells, 2)
        height, width = cells.shape[1:3]
        corners = cells.unflatten(2, (width // 2, 2)).unflatten(1, (height // 2, 2))
        corners = corners.permute(0, 1, 3, 4, 2, 5).flatten(3)  # both rows of the left column first
        return self.reduction(self.norm(corners))


class SwinStage(nn.Module):
    """Blocks of one resolution, every second one shifted by half a window, and the patch merging
    that leads to the next stage, if there is one. The first ``checkpointed`` blocks recompute their
    activations in the backward pass.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        drop_path: Sequence[float],
        downsample: PatchMerging | None,
        checkpointed: int,
    ) -> None:
        super().__init__()
        self.window, self.checkpointed = window, checkpointed
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, window, window // 2 if i % 2 else 0, rate)
            for i, rate in enumerate(drop_path)
        )
        self.downsample = downsample

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The output (B, H, W, C) of the blocks, and the input of the next stage."""
        mask = shift_mask(cells, self.window, self.window // 2)
        for i, block in enumerate(self.blocks):
            if i < self.checkpointed and self.training and torch.is_grad_enabled():
                cells = checkpoint(block, cells, mask, use_reentrant=False)
            else:
                cells = block(cells, mask)
        return cells, cells if self.downsample is None else self.downsample(cells)


class PatchEmbedding(PatchEmbed):
    """timm's, but zeros at the bottom and right make up whole patches."""

    def __init__(self, dim: int) -> None:
        super().__init__(
            None, patch_size=PATCH, embed_dim=dim, norm_layer=nn.LayerNorm, output_fmt="NHWC"
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to cells (B, ceil(H / 4), ceil(W / 4), C)."""
        height, width = pixels.shape[2:]
        right, below = round_up(width, PATCH) - width, round_up(height, PATCH) - height
        return super().forward(F.pad(pixels, (0, right, 0, below)))


def swin_stages(
    embed_dim: int,
    depths: Sequence[int],
    heads: Sequence[int],
    window: int,
    drop_path_rate: float,
    checkpointed: int,
    count: int,
) -> nn.ModuleList:
    """The first ``count`` stages, see ``SwinTransformer``; the last one has no patch merging."""
    blocks = sum(depths)
    rates = [drop_path_rate * block / max(blocks - 1, 1) for block in range(blocks)]
    stages = nn.ModuleList()
    for i in range(count):
        before, dim = sum(depths[:i]), embed_dim * 2**i
        stage = SwinStage(
            dim,
            heads[i],
            window,
            rates[before : before + depths[i]],
            PatchMerging(dim) if i < count - 1 else None,
            checkpointed - before,
        )
        stages.append(stage)
    return stages


def initialise(module: nn.Module) -> None:
    """The original's initial values; convolutions and layer norms keep those of torch."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
