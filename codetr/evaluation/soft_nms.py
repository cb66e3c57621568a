"""Class-wise soft-NMS: overlapping boxes of one class lose score instead of being removed.

Bodla et al., "Soft-NMS", ICCV 2017, linear decay (eq. 3), with the conventions of mmcv's
``soft_nms``: a score decays where IoU >= threshold, and boxes below the smallest score are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codetr.boxes import pairwise_iou
from codetr.errors import UserError


@dataclass(frozen=True)
class SoftNms:
    """Linear soft-NMS within each class, on the CPU in double precision.

    ``iou_threshold``: from this IoU on, a score is multiplied by 1 - IoU; ``min_score``: boxes
    whose decayed score is below it are dropped (the best box of all always stays).
    Raises UserError where the threshold is outside (0, 1] or the smallest score is negative.
    """

    iou_threshold: float = 0.8
    min_score: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.iou_threshold <= 1:
            raise UserError(f"nms.iou_threshold is {self.iou_threshold}: choose one in (0, 1]")
        if self.min_score < 0:
            raise UserError(f"nms.min_score is {self.min_score}: choose 0 or more")

    def __call__(self, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Decay the scores (n,) of boxes (n, 4), any one unit, with labels (n,).

        Returns the indices (m,) of the boxes that stay, best decayed score first, and those
        decayed scores (m,), on the device and in the dtype of the input.
        """
        if len(scores) == 0:
            return torch.zeros_like(labels, dtype=torch.int64), scores
        boxes = boxes_xyxy.detach().cpu().double()
        before = scores.detach().cpu().double().numpy()
        classes = labels.cpu().numpy()
        after = before.copy()
        for label in np.unique(classes):
            members = np.flatnonzero(classes == label)
            if len(members) > 1:  # a class with a single box has nothing to suppress
                after[members] = self._decay(boxes[torch.from_numpy(members)], before[members])
        stays = after >= self.min_score
        stays[before.argmax()] = True
        order = np.argsort(-after, kind="stable")
        keep = torch.from_numpy(order[stays[order]])
        decayed = torch.from_numpy(after)[keep]
        return keep.to(scores.device), decayed.to(scores)

    def _decay(self, boxes: Tensor, scores: np.ndarray) -> np.ndarray:
        """Scores (n,) of one class once every box has been picked, best current score first."""
        iou = pairwise_iou(boxes, boxes).numpy()
        factors = np.where(iou >= self.iou_threshold, 1 - iou, 1.0)
        np.fill_diagonal(factors, 1.0)
        # Only boxes with an overlapping partner can change; the others need no turn.
        involved = np.flatnonzero((factors < 1).any(axis=1))
        current, factors = scores[involved], factors[np.ix_(involved, involved)]
        waiting = np.ones(len(involved), dtype=bool)
        for _ in involved:
            pick = np.where(waiting, current, -1.0).argmax()
            if current[pick] < self.min_score:
                break  # all that wait are lower still, and will be dropped
            waiting[pick] = False
            current[waiting] *= factors[pick, waiting]
        result = scores.copy()
        result[involved] = current
        return result
