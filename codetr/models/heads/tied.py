"""A head whose decoder layers share one pair of embeddings."""

from __future__ import annotations

import torch
from torch import nn

from codetr.models.heads.detection import DetectionHead


class PerLayer(nn.ModuleList):
    """``self[i]`` is the first module for each of ``num_layers`` decoder layers, and the second
    for index ``num_layers``, the encoder's proposals. A shared module is held (and saved) once.
    """

    def __init__(self, modules: nn.ModuleList, num_layers: int) -> None:
        super().__init__(modules)
        self.num_layers = num_layers

    def __getitem__(self, index: int) -> nn.Module:  # type: ignore[override]
        return super().__getitem__(index // self.num_layers)


class TiedDetectionHead(DetectionHead):
    """As ``DetectionHead``, but all decoder layers share ``classify`` and ``regress``; only the
    encoder's proposals, if ``two_stage``, have their own (DINO; Deformable DETR without
    refinement).

    ``size_logit`` is where the predicted logits of width and height start: 0 where anchors bring
    a size, -2 where they are points (Deformable DETR, official ``reg_branches``).
    """

    def __init__(
        self,
        num_classes: int,
        dim: int = 256,
        num_layers: int = 6,
        two_stage: bool = True,
        size_logit: float = 0.0,
    ) -> None:
        super().__init__(num_classes, dim, 1, two_stage)
        self.num_layers = num_layers
        self.classify = PerLayer(self.classify, num_layers)
        self.regress = PerLayer(self.regress, num_layers)
        with torch.no_grad():
            self.regress[0][-1].bias[2:] = size_logit  # type: ignore[index, operator]
