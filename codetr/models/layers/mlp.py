"""Perceptrons."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Mlp(nn.Sequential):
    """Linear layers of the given widths with ReLU between them: (..., w0) to (..., wn)."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        super().__init__(*layers[:-1])


class FeedForward(nn.Module):
    """The transformer's two-layer perceptron with its residual: (..., dim) to (..., dim)."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)
        self.activation = nn.ReLU(inplace=True)  # the widest tensor of a layer: no copy
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Residual included."""
        hidden = self.dropout(self.activation(self.expand(x)))
        return x + self.dropout(self.contract(hidden))
