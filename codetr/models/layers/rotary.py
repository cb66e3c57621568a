"""Rotary position embeddings on a grid (Su et al. 2021, "RoFormer", equation 34, per axis)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor


def rotary_table(
    height: int,
    width: int,
    dim: int,
    span: float = 16.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """(2, height * width, dim) cosines and sines of the angles by which channels are rotated.

    Channels come in neighbouring pairs: the first half of ``dim`` turns with the row, the second
    with the column. Positions run from 0 to ``span`` on both axes for a grid of any size, so that
    weights fit any resolution (Fang et al. 2023, "EVA-02"). ``dtype`` must be float32 or wider:
    half precision is too coarse for large angles.
    """
    count = partial(torch.arange, dtype=dtype, device=device)
    frequencies = 1.0 / 10000.0 ** (count(0, dim // 2, 2) / (dim // 2))
    rows, columns = (torch.outer(count(n) / n * span, frequencies) for n in (height, width))
    angles = torch.cat(
        [
            rows[:, None].expand(height, width, -1),
            columns[None].expand(height, width, -1),
        ],
        dim=-1,
    )
    angles = angles.flatten(0, 1).repeat_interleave(2, dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(tokens: Tensor, table: Tensor) -> Tensor:
    """Rotate each pair of channels of ``tokens`` (..., S, dim) by its angle in ``table`` (2, S,
    dim); the dtype stays that of ``tokens``.
    """
    cosines, sines = table.unbind(0)
    quarter_turn = torch.stack([-tokens[..., 1::2], tokens[..., ::2]], dim=-1).flatten(-2)
    return (tokens * cosines + quarter_turn * sines).to(tokens.dtype)
