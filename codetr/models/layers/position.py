"""Sine position encodings of pixels and of coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _interleaved_sine(angles: Tensor) -> Tensor:
    """(..., D) angles to sine on even and cosine on odd channels."""
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def _wavelengths(num_channels: int, temperature: float, like: Tensor) -> Tensor:
    exponent = torch.arange(num_channels, device=like.device, dtype=like.dtype)
    exponent = 2 * torch.div(exponent, 2, rounding_mode="floor") / num_channels
    return torch.full_like(exponent, temperature) ** exponent


def sine_tokens(
    paddings: Sequence[Tensor], dim: int, temperature: float, offset: float, like: Tensor
) -> Tensor:
    """Encoding (B, S, dim) of each pixel's position within the valid area, y before x, level by
    level and row by row.

    ``paddings`` (B, H_l, W_l) bool, True outside the image; ``offset`` is added to the pixel count
    before it is normalised to 2 pi (Co-DINO 0, Deformable DETR -0.5); ``like`` gives the dtype.
    """
    angles = [_angles(~padding, offset, like.dtype).flatten(1, 2) for padding in paddings]
    wavelengths = _wavelengths(dim // 2, temperature, like)
    return _interleaved_sine(torch.cat(angles, dim=1)[..., None] / wavelengths).flatten(-2)


def _angles(valid: Tensor, offset: float, dtype: torch.dtype) -> Tensor:
    """(B, H, W, 2) y and x of the pixels of a ``valid`` area (B, H, W), 2 pi at its end."""
    parts = []
    for axis in (1, 2):
        # of integers: CUDA has no deterministic cumulative sum of floats
        count = valid.cumsum(axis).to(dtype)
        last = count.narrow(axis, count.shape[axis] - 1, 1)
        parts.append((count + offset) / (last + 1e-6) * (2 * math.pi))
    return torch.stack(parts, dim=-1)


def sine_coordinates(coordinates: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Encoding (..., n * dim) of (..., n) coordinates in [0, 1], ``dim`` channels for each."""
    wavelengths = _wavelengths(dim, temperature, coordinates)
    angles = coordinates[..., None] * (2 * math.pi) / wavelengths
    return _interleaved_sine(angles).flatten(-2)
