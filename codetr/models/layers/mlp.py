"""Multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import Tensor, nn


class Mlp(nn.Sequential):
    """Linear layers of the given widths with ReLU between them: (..., w0) to (..., wn)."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        super().__init__(*layers[:-1])


class ScaleMlp(Mlp):
    """The factors of a position, channel by channel, from its content: (..., dim) to (..., dim)
    (Conditional DETR, section 3.2; DAB-DETR, section 4.3).
    """

    def __init__(self, dim: int = 256) -> None:
        super().__init__(dim, dim, dim)
        xavier_matrices(self)


def xavier_matrices(*modules: nn.Module) -> None:
    """Xavier initialisation of all parameters of two or more dimensions, as in DETR's code."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)


RELU = partial(nn.ReLU, inplace=True)
"""In place: its input is the widest tensor of a layer."""


class FeedForward(nn.Module):
    """The transformer's two-layer perceptron with its residual: (..., dim) to (..., dim).

    ``activation`` builds the activation between both layers.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = RELU,
    ) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)
        self.activation = activation()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Residual included."""
        hidden = self.dropout(self.activation(self.expand(x)))
        return x + self.dropout(self.contract(hidden))
