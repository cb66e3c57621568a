"""PAA (Kim and Lee 2020, "Probabilistic Anchor Assignment") as an auxiliary head.

Official parameter names (mmdet ``PAAHead``) and ours, beside those in ``dense``: ``atss_cls``,
``atss_reg``, ``atss_centerness`` are ``cls``, ``reg``, ``iou``.
"""

from __future__ import annotations

from torch import Tensor

from codetr.boxes import paired_iou
from codetr.loss_terms import Count, Losses, LossTerm
from codetr.nms import ClasswiseNms
from codetr.structures import Batch
from codetr.supervision.assigners.paa import PaaAssigner
from codetr.supervision.aux_heads.anchors import AnchorGrid, Anchors, DeltaCoder
from codetr.supervision.aux_heads.dense import (
    AnchorBranches,
    DensePredictions,
    focal_and_giou_losses,
)
from codetr.supervision.aux_heads.layers import predictor
from codetr.supervision.aux_heads.matched import DenseTargets
from codetr.supervision.aux_heads.selection import Selection, VotedSelection
from codetr.supervision.criteria.focal import quality_entropy

GRID = AnchorGrid(scales=(8.0,))
CODER = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2))
ASSIGNER = PaaAssigner()
SELECTION = VotedSelection(nms=ClasswiseNms(iou=0.6), threshold=0.05)
MIN_IOU = 1e-12
"""Lower bound of the weight of a positive anchor's box loss."""


class PaaHead(AnchorBranches):
    """One anchor per cell, positive where it predicts its box well; losses ``cls`` (focal),
    ``bbox`` (GIoU) and ``iou``, which a branch beside the regression predicts. The weights of the
    first two losses also enter the assignment.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        num_levels: int,
        num_convs: int = 1,
        cls_weight: float = 1.0,
        bbox_weight: float = 1.3,
        iou_weight: float = 0.5,
        grid: AnchorGrid = GRID,
        coder: DeltaCoder = CODER,
        assigner: PaaAssigner = ASSIGNER,
        selection: Selection = SELECTION,
    ) -> None:
        super().__init__(num_classes, channels, num_convs, grid, selection)
        self.cls_weight, self.bbox_weight, self.iou_weight = cls_weight, bbox_weight, iou_weight
        self.coder, self.assigner = coder, assigner
        self.iou = predictor(channels, 1)
        self.finish_init(num_levels)

    def quality(self, classification: Tensor, regression: Tensor) -> Tensor:
        """The IoU."""
        return self.iou(regression)

    def assign_image(self, priors: Anchors, boxes_px: Tensor, usable: Tensor) -> Tensor:
        """The first stage: candidates by overlap."""
        return self.assigner.proposal(priors.boxes, boxes_px, usable)

    def assign(self, predictions: DensePredictions, priors: Anchors, batch: Batch) -> Tensor:
        """Both stages: of the anchors that were proposed for a box, those that predict it well."""
        proposed = super().assign(predictions, priors, batch)
        boxes = self.decode(priors, predictions.regression)
        wanted = self.targets(proposed, priors, batch)
        focal, giou_loss = focal_and_giou_losses(predictions.logits, boxes, wanted)
        losses = self.cls_weight * focal + self.bbox_weight * giou_loss
        counts = [len(targets) for targets in batch.targets]
        return self.assigner(proposed, losses, priors.level_sizes, counts)

    def losses(
        self, predictions: DensePredictions, priors: Anchors, wanted: DenseTargets
    ) -> Losses:
        """Divided by the positives, ``bbox`` by their IoU, of this process alone, as in mmdet."""
        assert predictions.quality is not None
        boxes = self.decode(priors, predictions.regression)
        focal, giou_loss = focal_and_giou_losses(predictions.logits, boxes, wanted)
        iou = paired_iou(boxes.detach(), wanted.boxes_px) * wanted.positive
        weight = iou.clamp(min=MIN_IOU) * wanted.positive
        entropy = quality_entropy(predictions.quality, iou, wanted.positive)
        num_pos = wanted.positive.sum().to(iou.dtype)
        at_least_one = Count(num_pos, minimum=len(wanted.labels), shared=False)
        exact = Count(num_pos, minimum=0, shared=False)
        sum_iou = Count(iou.sum(), minimum=0, shared=False)
        return {
            "cls": LossTerm((focal * priors.usable).sum(), self.cls_weight, at_least_one),
            "bbox": LossTerm((giou_loss * weight).sum(), self.bbox_weight, sum_iou),
            "iou": LossTerm(entropy.sum(), self.iou_weight, exact),
        }
