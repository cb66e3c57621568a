"""One-to-one assignment of predictions to targets by minimum total cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from codetr.boxes import cxcywh_to_xyxy, pairwise_giou
from codetr.structures import Assignment, Predictions, Targets

FORBIDDEN = 1e6
"""Cost that stands for a value that is not finite. The loss check reports the cause."""


class HungarianMatcher(nn.Module):
    """Bipartite matching with class, L1 and GIoU costs (DETR; focal cost of Deformable DETR).

    L1 is measured on relative cxcywh, GIoU on boxes in pixels, as the official Co-DETR does.
    """

    def __init__(
        self,
        cls: float = 2.0,
        l1: float = 5.0,
        giou: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.cls, self.l1, self.giou = cls, l1, giou
        self.alpha, self.gamma = alpha, gamma

    @torch.no_grad()
    def forward(
        self, layers: Sequence[Predictions], targets: Sequence[Targets]
    ) -> tuple[Assignment, ...]:
        """Match every layer's predictions (B, Q, ...) by itself. One copy leaves the device."""
        logits = torch.stack([layer.logits for layer in layers])
        boxes = torch.stack([layer.boxes for layer in layers])
        costs = [
            self.cost(logits[:, b].to(boxes.dtype), boxes[:, b], targets[b])
            for b in range(len(targets))
        ]
        flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        flat = np.nan_to_num(flat, nan=FORBIDDEN, posinf=FORBIDDEN, neginf=-FORBIDDEN)
        ends = np.cumsum([cost.numel() for cost in costs])[:-1]
        tables = [
            table.reshape(cost.shape)
            for table, cost in zip(np.split(flat, ends), costs, strict=True)
        ]
        return tuple(
            _solve([table[layer] for table in tables], boxes.device) for layer in range(len(layers))
        )

    def cost(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """Costs (..., Q, N) of predictions (..., Q, K), (..., Q, 4) for one image's N targets."""
        logit = logits[..., targets.labels]
        p = logit.sigmoid()
        positive = -torch.log(p + 1e-12) * self.alpha * (1 - p) ** self.gamma
        negative = -torch.log(1 - p + 1e-12) * (1 - self.alpha) * p**self.gamma
        wanted = targets.boxes.to(boxes.dtype)
        distance = (boxes[..., :, None, :] - wanted).abs().sum(-1)
        size = targets.size_whwh.to(boxes.dtype)
        overlap = pairwise_giou(cxcywh_to_xyxy(boxes) * size, cxcywh_to_xyxy(wanted) * size)
        return self.cls * (positive - negative) + self.l1 * distance - self.giou * overlap


def _solve(tables: Sequence[np.ndarray], device: torch.device) -> Assignment:
    """Match each image's cost table (Q, N)."""
    image, query, target = [], [], []
    offset = 0
    for b, table in enumerate(tables):
        rows, columns = linear_sum_assignment(table)
        image.append(np.full(len(rows), b))
        query.append(rows)
        target.append(columns + offset)
        offset += table.shape[1]
    packed = torch.from_numpy(np.stack([np.concatenate(x) for x in (image, query, target)]))
    packed = packed.to(device, torch.int64, non_blocking=True)
    return Assignment(image=packed[0], query=packed[1], target=packed[2])
