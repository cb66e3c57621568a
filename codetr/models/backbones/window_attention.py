"""Attention within windows of a map, as the Swin Transformer has it (Liu et al., ICCV 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MASKED = -100.0
"""Added to the logits of cells that only the cyclic shift made neighbours, as in the original."""


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows of N = window * window tokens, with a learned bias
    for each relative position (section 3.2 and equation 4).
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        index = relative_position_index(window)
        self.register_buffer("relative_position_index", index, persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """(B, W, N, C) windows to the same shape; ``mask`` (W, N, N) is added to the logits."""
        qkv = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        bias = bias.to(qkv.dtype)
        # Fused kernels take one batch dimension and one of heads: windows join the heads where
        # the bias differs between them, so that it need not be repeated for every image.
        if mask is None:
            query, key, value = qkv.flatten(1, 2)
        else:
            query, key, value = qkv.flatten(2, 3)
            bias = (bias + mask[:, None].to(qkv.dtype)).flatten(0, 1)
        attended = F.scaled_dot_product_attention(query, key, value, bias[None])
        attended = attended.reshape(*windows.shape[:2], self.heads, windows.shape[2], -1)
        return self.proj(attended.transpose(2, 3).flatten(3))


def relative_position_index(window: int) -> Tensor:
    """(N, N) int64: the row of the bias table for query i and key j, which counts their vertical
    distance first.
    """
    side = torch.arange(window)
    distance = side[:, None] - side + window - 1
    rows, columns = distance[:, None, :, None], distance[None, :, None, :]
    return (rows * (2 * window - 1) + columns).reshape(window**2, window**2)


def round_up(length: int, part: int) -> int:
    """The next multiple of ``part``, in a form that torch.export simplifies where sizes are free:
    it reduces ((n - 1) // 2 + 1 - 1) // 2 + 1 to (n - 1) // 4 + 1, but cannot reduce nested
    remainders.
    """
    return ((length - 1) // part + 1) * part


def pad_cells(cells: Tensor, part: int) -> Tensor:
    """(B, H, W, C) with zeros at the bottom and right, up to multiples of ``part``."""
    height, width = cells.shape[1:3]
    right, below = round_up(width, part) - width, round_up(height, part) - height
    return F.pad(cells, (0, 0, 0, right, 0, below))


def split_windows(cells: Tensor, window: int) -> Tensor:
    """(B, H, W, C), H and W multiples of ``window``, to (B, H W / window**2, window**2, C)."""
    down, across = (side // window for side in cells.shape[1:3])
    split = cells.unflatten(2, (across, window)).unflatten(1, (down, window))
    return split.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def join_windows(windows: Tensor, window: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of ``split_windows``; ``grid`` is the number of windows (down, across)."""
    split = windows.unflatten(2, (window, window)).unflatten(1, grid)
    return split.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def shift_mask(cells: Tensor, window: int, shift: int) -> Tensor:
    """The additive attention mask (windows, N, N) of cyclically shifted windows over (B, H, W, C)
    cells, padded to whole windows: ``MASKED`` between cells that were not neighbours before the
    shift (section 3.2, "efficient batch computation").
    """
    rows, columns = (
        _bands(round_up(length, window), window, shift, cells) for length in cells.shape[1:3]
    )
    regions = split_windows((3 * rows[:, None] + columns)[None, :, :, None], window)[0, :, :, 0]
    apart = regions[:, :, None] != regions[:, None]
    return torch.zeros_like(apart, dtype=cells.dtype).masked_fill(apart, MASKED)


def _bands(length: int, window: int, shift: int, like: Tensor) -> Tensor:
    """The region of every cell along one axis: 0 before the last window; in that, 1 for cells that
    belong there and 2 for those that the shift wrapped around.
    """
    position = torch.arange(length, device=like.device)
    return (position >= length - window).long() + (position >= length - shift).long()
