"""What the losses of dense heads are divided by."""

from __future__ import annotations

import torch
from torch import Tensor


def count_positives(positive: Tensor) -> Tensor:
    """() how many of ``positive`` (B, A) bool are set; an image without any counts 1."""
    return positive.sum(dim=1).clamp(min=1).sum()


def divisor(total: Tensor, minimum: float = 0.0) -> Tensor:
    """``total``, at least ``minimum``, plus the epsilon of its type: 0 / 0 becomes 0 (mmdet)."""
    return total.clamp(min=minimum) + torch.finfo(total.dtype).eps
