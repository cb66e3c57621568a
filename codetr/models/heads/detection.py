"""Class and box embeddings, one pair per decoder layer and one for the encoder's proposals."""

from __future__ import annotations

import math
from copy import deepcopy

from torch import nn

from codetr.models.layers import Mlp


class DetectionHead(nn.Module):
    """``classify[i]`` (C to K logits) and ``regress[i]`` (C to 4 offsets) of decoder layer i.

    Index ``num_layers`` belongs to the encoder's proposals, if ``two_stage``. Nothing is shared,
    but all start with the same numbers, as in the official code.
    """

    def __init__(
        self, num_classes: int, dim: int = 256, num_layers: int = 6, two_stage: bool = True
    ) -> None:
        super().__init__()
        self.num_classes, self.num_layers = num_classes, num_layers
        count = num_layers + int(two_stage)
        classify, regress = _class_layer(dim, num_classes), _box_layers(dim)
        self.classify = nn.ModuleList(deepcopy(classify) for _ in range(count))
        self.regress = nn.ModuleList(deepcopy(regress) for _ in range(count))


def _class_layer(dim: int, num_classes: int) -> nn.Linear:
    layer = nn.Linear(dim, num_classes)
    nn.init.constant_(layer.bias, -math.log(99.0))  # prior probability 0.01
    return layer


def _box_layers(dim: int) -> Mlp:
    last = nn.Linear(dim, 4)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    layers = Mlp(dim, dim, dim, 4)
    layers[-1] = last
    return layers
