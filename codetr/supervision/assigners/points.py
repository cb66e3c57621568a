"""Assignment of points to the boxes around them, as in FCOS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.boxes import area_xyxy, encode_distances
from codetr.supervision.assigners.max_iou import NEGATIVE


@dataclass(frozen=True, kw_only=True)
class PointAssigner:
    """Assigns each point to the smallest box around it within the regression range of its level
    (Tian et al. 2019, sections 3.1 and 3.2, without centre sampling).
    """

    def __call__(self, points: Tensor, reach: Tensor, boxes: Tensor) -> Tensor:
        """Index (P,) into ``boxes`` for every point, or ``NEGATIVE``; none is ignored.

        ``points`` (P, 2) and ``boxes`` (N, 4) xyxy in px. A box is a candidate if the point is
        strictly inside it and the distance to its farthest side is within ``reach`` (P, 2),
        bounds included. Among boxes of equal area the first one wins.
        """
        if not len(boxes):
            return torch.full_like(points[:, 0], NEGATIVE, dtype=torch.long)
        distances = encode_distances(points[:, None], boxes)
        nearest, farthest = distances.amin(dim=-1), distances.amax(dim=-1)
        fits = (nearest > 0) & (farthest >= reach[:, :1]) & (farthest <= reach[:, 1:])
        by_area = area_xyxy(boxes).argsort(stable=True)
        # Positions in this order are distinct, so the minimum does not depend on how ties reduce.
        place = torch.arange(len(boxes), device=boxes.device)
        first = torch.where(fits[:, by_area], place, len(boxes)).amin(dim=1)
        return torch.cat([by_area, by_area.new_full((1,), NEGATIVE)])[first]
