"""GFL (Li et al. 2020, "Generalized Focal Loss") as an auxiliary head.

Official parameter names (mmdet ``GFLHead``) and ours, beside those in ``dense``: ``gfl_cls``,
``gfl_reg`` are ``cls``, ``reg``; the constant ``integral.project`` (0, 1, ...) is not kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.boxes import (
    centres_xyxy,
    decode_distances,
    encode_distances,
    paired_giou,
    paired_iou,
)
from codetr.loss_terms import Count, Losses, LossTerm
from codetr.nms import ClasswiseNms
from codetr.supervision.assigners.atss import AtssAssigner
from codetr.supervision.aux_heads.anchors import AnchorGrid, Anchors
from codetr.supervision.aux_heads.dense import DenseBranches, DensePredictions
from codetr.supervision.aux_heads.matched import DenseTargets, count_positives
from codetr.supervision.aux_heads.selection import DenseSelection, Selection
from codetr.supervision.criteria.focal import (
    distribution_focal_loss,
    one_hot_labels,
    quality_focal_loss,
)

GRID = AnchorGrid(scales=(8.0,))
ASSIGNER = AtssAssigner()
SELECTION = DenseSelection(nms=ClasswiseNms(iou=0.6), threshold=0.05)
MARGIN = 0.1
"""Targets of a distribution stay this far below its last bin (mmdet)."""


@dataclass(frozen=True, kw_only=True)
class DistributionCoder:
    """Distances of points to the four sides of boxes, each a distribution over the whole numbers 0
    to ``bins`` (Li et al. 2020, section 3.2). The regression (..., 4 * (bins + 1)) is their logits,
    side after side.
    """

    bins: int

    def logits(self, regression: Tensor) -> Tensor:
        """(..., 4, bins + 1) of every side."""
        return regression.unflatten(-1, (4, self.bins + 1))

    def expected(self, regression: Tensor) -> Tensor:
        """(..., 4) expected distances."""
        bins = torch.arange(self.bins + 1, device=regression.device, dtype=regression.dtype)
        return self.logits(regression).softmax(dim=-1) @ bins

    def clamp(self, distances: Tensor) -> Tensor:
        """``distances`` within the range of a distribution, so that each has a bin above it."""
        return distances.clamp(min=0, max=self.bins - MARGIN)


class GflHead(DenseBranches[Anchors]):
    """One anchor per cell. Each side's distance is a distribution over ``bins`` + 1 values, in
    strides: the regression is their logits, left, top, right, bottom. Losses ``cls`` (classes
    learn the IoU of their box), ``bbox`` (GIoU) and ``dfl`` (of the distributions).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        num_levels: int,
        num_convs: int = 1,
        bins: int = 16,
        cls_weight: float = 1.0,
        bbox_weight: float = 2.0,
        dfl_weight: float = 0.25,
        grid: AnchorGrid = GRID,
        assigner: AtssAssigner = ASSIGNER,
        selection: Selection = SELECTION,
    ) -> None:
        super().__init__(
            num_classes, channels, num_convs, grid, selection, regression_size=4 * (bins + 1)
        )
        self.coder, self.assigner = DistributionCoder(bins=bins), assigner
        self.cls_weight, self.bbox_weight, self.dfl_weight = cls_weight, bbox_weight, dfl_weight
        self.finish_init(num_levels)

    def decode(self, priors: Anchors, regression: Tensor) -> Tensor:
        """From the expected distances."""
        sides = self.coder.expected(regression) * priors.strides[:, None]
        return decode_distances(centres_xyxy(priors.boxes), sides)

    def assign_image(self, priors: Anchors, boxes_px: Tensor, usable: Tensor) -> Tensor:
        """By the overlaps of the nearest anchors."""
        return self.assigner(priors.boxes, priors.level_sizes, boxes_px, usable)

    def losses(
        self, predictions: DensePredictions, priors: Anchors, wanted: DenseTargets
    ) -> Losses:
        """``cls`` is divided by the positives, the others by the sum of their weights (the highest
        class probability): means over processes. Boxes are compared in strides, about the anchor's
        centre.
        """
        distances = encode_distances(centres_xyxy(priors.boxes), wanted.boxes_px)
        distances = distances / priors.strides[:, None]
        origin = distances.new_zeros(2)
        true_boxes = decode_distances(origin, distances)
        boxes = decode_distances(origin, self.coder.expected(predictions.regression))
        iou = paired_iou(boxes.detach(), true_boxes) * wanted.positive
        weight = predictions.logits.detach().sigmoid().amax(dim=2) * wanted.positive
        num_pos = Count(count_positives(wanted.positive).to(weight.dtype))
        sum_weight = Count(weight.sum())

        quality = one_hot_labels(wanted.labels, self.num_classes, iou.dtype) * iou[..., None]
        cls = quality_focal_loss(predictions.logits, quality).sum(dim=2) * priors.usable
        giou_loss = (1 - paired_giou(boxes, true_boxes)) * weight
        logits, distances = self.coder.logits(predictions.regression), self.coder.clamp(distances)
        dfl = distribution_focal_loss(logits, distances).mean(dim=2) * weight
        return {
            "cls": LossTerm(cls.sum(), self.cls_weight, num_pos),
            "bbox": LossTerm(giou_loss.sum(), self.bbox_weight, sum_weight),
            "dfl": LossTerm(dfl.sum(), self.dfl_weight, sum_weight),
        }
