"""ATSS (Zhang et al. 2020) as an auxiliary head.

Official parameter names (mmdet ``ATSSHead``) and ours: ``cls_convs.i.{conv,gn}`` are
``cls_tower.i.{conv,norm}``, ``reg_convs`` likewise; ``atss_cls``, ``atss_reg``,
``atss_centerness`` are ``cls``, ``reg``, ``centerness``; ``scales.l.scale`` is ``scales.l``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from codetr.boxes import paired_giou
from codetr.loss_terms import Count, Losses, LossTerm
from codetr.nms import ClasswiseNms
from codetr.supervision.assigners.atss import AtssAssigner
from codetr.supervision.aux_heads.anchors import AnchorGrid, Anchors
from codetr.supervision.aux_heads.coder import (
    DeltaCoder,
    centerness,
    centres_xyxy,
    encode_distances,
)
from codetr.supervision.aux_heads.dense import (
    AnchorBranches,
    DensePredictions,
    init_dense,
    level_scales,
    predictor,
)
from codetr.supervision.aux_heads.matched import DenseTargets, count_positives
from codetr.supervision.aux_heads.selection import DenseSelection, Selection
from codetr.supervision.criteria.focal import focal_loss_of_labels

GRID = AnchorGrid(scales=(8.0,))
CODER = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2))
ASSIGNER = AtssAssigner()
SELECTION = DenseSelection(nms=ClasswiseNms(iou=0.6))


class AtssHead(AnchorBranches):
    """One anchor per cell; losses ``cls`` (focal), ``bbox`` (GIoU) and ``centerness``, which a
    branch beside the regression predicts.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        num_levels: int,
        num_convs: int = 1,
        cls_weight: float = 1.0,
        bbox_weight: float = 2.0,
        centerness_weight: float = 1.0,
        grid: AnchorGrid = GRID,
        coder: DeltaCoder = CODER,
        assigner: AtssAssigner = ASSIGNER,
        selection: Selection = SELECTION,
    ) -> None:
        super().__init__(num_classes, channels, num_convs, grid, selection)
        self.cls_weight, self.bbox_weight = cls_weight, bbox_weight
        self.centerness_weight = centerness_weight
        self.coder, self.assigner = coder, assigner
        self.centerness = predictor(channels, 1)
        self.scales = level_scales(num_levels)
        init_dense(self, self.cls)

    def quality(self, classification: Tensor, regression: Tensor) -> Tensor:
        """The centerness."""
        return self.centerness(regression)

    def assign_image(self, places: Anchors, boxes_px: Tensor, usable: Tensor) -> Tensor:
        """By the overlaps of the nearest anchors."""
        return self.assigner(places.boxes, places.level_sizes, boxes_px, usable)

    def losses(
        self, predictions: DensePredictions, places: Anchors, wanted: DenseTargets
    ) -> Losses:
        """Divided by the positives, ``bbox`` by their centerness: means over processes."""
        assert predictions.quality is not None
        sides = encode_distances(centres_xyxy(places.boxes), wanted.boxes_px)
        quality = centerness(sides) * wanted.positive
        num_pos = Count(count_positives(wanted.positive).to(quality.dtype))

        focal = focal_loss_of_labels(predictions.logits, wanted.labels).sum(dim=2) * places.usable
        boxes = self.decode(places, predictions.regression)
        giou_loss = (1 - paired_giou(boxes, wanted.boxes_px)) * quality
        entropy = F.binary_cross_entropy_with_logits(predictions.quality, quality, reduction="none")
        entropy = entropy * wanted.positive
        return {
            "cls": LossTerm(focal.sum(), self.cls_weight, num_pos),
            "bbox": LossTerm(giou_loss.sum(), self.bbox_weight, Count(quality.sum())),
            "centerness": LossTerm(entropy.sum(), self.centerness_weight, num_pos),
        }
