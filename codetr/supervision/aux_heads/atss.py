"""ATSS (Zhang et al. 2020) as an auxiliary head.

Official parameter names (mmdet ``ATSSHead``) and ours, beside those in ``dense``: ``atss_cls``,
``atss_reg``, ``atss_centerness`` are ``cls``, ``reg``, ``centerness``.
"""

from __future__ import annotations

from torch import Tensor

from codetr.boxes import centerness, centres_xyxy, encode_distances
from codetr.loss_terms import Count, Losses, LossTerm
from codetr.nms import ClasswiseNms
from codetr.supervision.assigners.atss import AtssAssigner
from codetr.supervision.aux_heads.anchors import AnchorGrid, Anchors, DeltaCoder
from codetr.supervision.aux_heads.dense import (
    AnchorBranches,
    DensePredictions,
    focal_and_giou_losses,
)
from codetr.supervision.aux_heads.layers import predictor
from codetr.supervision.aux_heads.matched import DenseTargets, count_positives
from codetr.supervision.aux_heads.selection import DenseSelection, Selection
from codetr.supervision.criteria.focal import quality_entropy

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
        self.finish_init(num_levels)

    def quality(self, classification: Tensor, regression: Tensor) -> Tensor:
        """The centerness."""
        return self.centerness(regression)

    def assign_image(self, priors: Anchors, boxes_px: Tensor, usable: Tensor) -> Tensor:
        """By the overlaps of the nearest anchors."""
        return self.assigner(priors.boxes, priors.level_sizes, boxes_px, usable)

    def losses(
        self, predictions: DensePredictions, priors: Anchors, wanted: DenseTargets
    ) -> Losses:
        """Divided by the positives, ``bbox`` by their centerness: means over processes."""
        assert predictions.quality is not None
        sides = encode_distances(centres_xyxy(priors.boxes), wanted.boxes_px)
        quality = centerness(sides) * wanted.positive
        num_pos = Count(count_positives(wanted.positive).to(quality.dtype))

        boxes = self.decode(priors, predictions.regression)
        focal, giou_loss = focal_and_giou_losses(predictions.logits, boxes, wanted)
        entropy = quality_entropy(predictions.quality, quality, wanted.positive)
        return {
            "cls": LossTerm((focal * priors.usable).sum(), self.cls_weight, num_pos),
            "bbox": LossTerm((giou_loss * quality).sum(), self.bbox_weight, Count(quality.sum())),
            "centerness": LossTerm(entropy.sum(), self.centerness_weight, num_pos),
        }
