"""GFL (Li et al. 2020, "Generalized Focal Loss") as an auxiliary head.

Official parameter names (mmdet ``GFLHead``) and ours: ``cls_convs.i.{conv,gn}`` are
``cls_tower.i.{conv,norm}``, ``reg_convs`` likewise; ``gfl_cls``, ``gfl_reg`` are ``cls``, ``reg``;
``scales.l.scale`` is ``scales.l``; the constant ``integral.project`` (0, 1, ...) is not kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.boxes import paired_giou, paired_iou
from codetr.loss_terms import Count, Losses, LossTerm
from codetr.nms import ClasswiseNms
from codetr.supervision.assigners.atss import AtssAssigner
from codetr.supervision.aux_heads.anchors import AnchorGrid, Anchors
from codetr.supervision.aux_heads.coder import centres_xyxy, decode_distances, encode_distances
from codetr.supervision.aux_heads.dense import (
    DenseBranches,
    DensePredictions,
    init_dense,
    level_scales,
)
from codetr.supervision.aux_heads.matched import DenseTargets, count_positives
from codetr.supervision.aux_heads.selection import DenseSelection, Selection
from codetr.supervision.criteria.focal import (
    distribution_focal_loss,
    one_hot_labels,
    quality_focal_loss,
)
from codetr.tensor_struct import TensorStruct

GRID = AnchorGrid(scales=(8.0,))
ASSIGNER = AtssAssigner()
SELECTION = DenseSelection(nms=ClasswiseNms(iou=0.6), threshold=0.05)
MARGIN = 0.1
"""Targets stay this far below the last bin, so that they have a bin above (mmdet)."""


@dataclass(frozen=True, kw_only=True)
class Goals(TensorStruct):
    """What the branches are measured by: ``boxes`` and ``predicted`` (B, A, 4) xyxy about the
    anchor's centre in strides, ``predicted`` with gradient; ``distances`` (B, A, 4) in bins;
    ``quality`` (B, A) their IoU and ``weight`` (B, A) the highest class probability, both
    detached and 0 where there is no positive.
    """

    boxes: Tensor
    predicted: Tensor
    distances: Tensor
    quality: Tensor
    weight: Tensor


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
        self.bins, self.assigner = bins, assigner
        self.cls_weight, self.bbox_weight, self.dfl_weight = cls_weight, bbox_weight, dfl_weight
        self.scales = level_scales(num_levels)
        init_dense(self, self.cls)

    def distances(self, regression: Tensor) -> Tensor:
        """(..., 4) expected distances in strides, from the bins' logits (..., 4 * (bins + 1))."""
        bins = torch.arange(self.bins + 1, device=regression.device, dtype=regression.dtype)
        return regression.unflatten(-1, (4, -1)).softmax(dim=-1) @ bins

    def decode(self, places: Anchors, regression: Tensor) -> Tensor:
        """From the expected distances."""
        sides = self.distances(regression) * places.strides[:, None]
        return decode_distances(centres_xyxy(places.boxes), sides)

    def assign_image(self, places: Anchors, boxes_px: Tensor, usable: Tensor) -> Tensor:
        """By the overlaps of the nearest anchors."""
        return self.assigner(places.boxes, places.level_sizes, boxes_px, usable)

    def goals(self, predictions: DensePredictions, places: Anchors, wanted: DenseTargets) -> Goals:
        """Targets that depend on the predictions, and what they are compared with."""
        sides = encode_distances(centres_xyxy(places.boxes), wanted.boxes_px)
        sides = sides / places.strides[:, None]
        origin = sides.new_zeros(2)
        boxes = decode_distances(origin, sides)
        predicted = decode_distances(origin, self.distances(predictions.regression))
        return Goals(
            boxes=boxes,
            predicted=predicted,
            distances=sides.clamp(min=0, max=self.bins - MARGIN),
            quality=paired_iou(predicted.detach(), boxes) * wanted.positive,
            weight=predictions.logits.detach().sigmoid().amax(dim=2) * wanted.positive,
        )

    def losses(
        self, predictions: DensePredictions, places: Anchors, wanted: DenseTargets
    ) -> Losses:
        """``cls`` is divided by the positives, the others by their weight: means over processes."""
        goals = self.goals(predictions, places, wanted)
        num_pos = Count(count_positives(wanted.positive).to(goals.weight.dtype))
        sum_weight = Count(goals.weight.sum())

        quality = one_hot_labels(wanted.labels, self.num_classes, predictions.logits.dtype)
        quality = quality * goals.quality[..., None]
        cls = quality_focal_loss(predictions.logits, quality).sum(dim=2) * places.usable
        giou_loss = (1 - paired_giou(goals.predicted, goals.boxes)) * goals.weight
        bins = predictions.regression.unflatten(-1, (4, -1))
        dfl = distribution_focal_loss(bins, goals.distances).mean(dim=2) * goals.weight
        return {
            "cls": LossTerm(cls.sum(), self.cls_weight, num_pos),
            "bbox": LossTerm(giou_loss.sum(), self.bbox_weight, sum_weight),
            "dfl": LossTerm(dfl.sum(), self.dfl_weight, sum_weight),
        }
