"""Class and box embeddings, one pair per decoder layer and one for the encoder's proposals."""

from __future__ import annotations

import math

from torch import nn

from codetr.layers import Mlp


class DetectionHead(nn.Module):
    """``classify[i]`` (C to K logits) and ``regress[i]`` (C to 4 offsets) of decoder layer i.

    Index ``num_layers`` belongs to the encoder's proposals, if ``two_stage``. Nothing is shared.
    """

    def __init__(
        self, num_classes: int, dim: int = 256, num_layers: int = 6, two_stage: bool = True
    ) -> None:
        super().__init__()
        self.num_classes, self.num_layers = num_classes, num_layers
        count = num_layers + int(two_stage)
        self.classify = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(count))
        self.regress = nn.ModuleList(Mlp(dim, dim, dim, 4) for _ in range(count))
        for classify in self.classify:
            nn.init.constant_(classify.bias, -math.log(99.0))  # prior probability 0.01
        for regress in self.regress:
            nn.init.zeros_(regress[-1].weight)
            nn.init.zeros_(regress[-1].bias)
