"""Geometry and losses need float32 also where the network runs in less."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 if its type is narrower, else unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
