"""PAA (Kim and Lee 2020, "Probabilistic Anchor Assignment") as an auxiliary head.

Official parameter names (mmdet ``PAAHead``) and ours: ``cls_convs.i.{conv,gn}`` are
``cls_tower.i.{conv,norm}``, ``reg_convs`` likewise; ``atss_cls``, ``atss_reg``,
``atss_centerness`` are ``cls``, ``reg``, ``iou``; ``scales.l.scale`` is ``scales.l``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codetr.boxes import paired_giou, paired_iou
from codetr.loss_terms import Count, Losses, LossTerm
from codetr.nms import ClasswiseNms
from codetr.structures import Batch
from codetr.supervision.assigners.paa import PaaAssigner
from codetr.supervision.aux_heads.anchors import AnchorGrid, Anchors
from codetr.supervision.aux_heads.coder import DeltaCoder
from codetr.supervision.aux_heads.dense import (
    AnchorBranches,
    DensePredictions,
    init_dense,
    level_scales,
    predictor,
)
from codetr.supervision.aux_heads.matched import DenseTargets
from codetr.supervision.aux_heads.selection import Selection, VotedSelection
from codetr.supervision.criteria.focal import focal_loss_of_labels
from codetr.tensor_struct import TensorStruct

GRID = AnchorGrid(scales=(8.0,))
CODER = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2))
ASSIGNER = PaaAssigner()
SELECTION = VotedSelection(nms=ClasswiseNms(iou=0.6), threshold=0.05)
MIN_IOU = 1e-12
"""A positive anchor's box loss has at least this weight."""


@dataclass(frozen=True, kw_only=True)
class Costs(TensorStruct):
    """Per anchor, (B, A), without a mask: ``focal`` loss summed over classes, ``giou_loss`` =
    1 - GIoU of the decoded box, and its ``iou``, detached.
    """

    focal: Tensor
    giou_loss: Tensor
    iou: Tensor


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
        self.scales = level_scales(num_levels)
        init_dense(self, self.cls)

    def quality(self, classification: Tensor, regression: Tensor) -> Tensor:
        """The IoU."""
        return self.iou(regression)

    def assign_image(self, places: Anchors, boxes_px: Tensor, usable: Tensor) -> Tensor:
        """The first stage: proposed by overlap."""
        return self.assigner.proposal(places.boxes, boxes_px, usable)

    @torch.no_grad()
    def assign(self, predictions: DensePredictions, places: Anchors, batch: Batch) -> Tensor:
        """Both stages: by what the proposed anchors would cost."""
        proposed = super().assign(predictions, places, batch)
        losses = self.candidate_losses(predictions, places, proposed, batch)
        counts = [len(targets) for targets in batch.targets]
        return torch.stack(
            self.assigner(proposed.unbind(), losses.unbind(), places.level_sizes, counts)
        )

    def candidate_losses(
        self, predictions: DensePredictions, places: Anchors, proposed: Tensor, batch: Batch
    ) -> Tensor:
        """(B, A) what every anchor would cost with its proposed box."""
        costs = self.costs(predictions, places, self.targets(proposed, places, batch))
        return self.cls_weight * costs.focal + self.bbox_weight * costs.giou_loss

    def costs(self, predictions: DensePredictions, places: Anchors, wanted: DenseTargets) -> Costs:
        """The parts of the losses, anchor by anchor."""
        boxes = self.decode(places, predictions.regression)
        return Costs(
            focal=focal_loss_of_labels(predictions.logits, wanted.labels).sum(dim=2),
            giou_loss=1 - paired_giou(boxes, wanted.boxes_px),
            iou=paired_iou(boxes.detach(), wanted.boxes_px),
        )

    def losses(
        self, predictions: DensePredictions, places: Anchors, wanted: DenseTargets
    ) -> Losses:
        """Divided by the positives, ``bbox`` by their IoU, of this process alone, as in mmdet."""
        assert predictions.quality is not None
        costs = self.costs(predictions, places, wanted)
        num_pos = wanted.positive.sum().to(costs.iou.dtype)
        giou_loss = costs.giou_loss * costs.iou.clamp(min=MIN_IOU) * wanted.positive
        entropy = F.binary_cross_entropy_with_logits(
            predictions.quality, costs.iou, reduction="none"
        )
        entropy = entropy * wanted.positive
        sum_iou = Count((costs.iou * wanted.positive).sum(), minimum=0, shared=False)
        focal = (costs.focal * places.usable).sum()
        one_each = Count(num_pos, minimum=len(wanted.labels), shared=False)
        own = Count(num_pos, minimum=0, shared=False)
        return {
            "cls": LossTerm(focal, self.cls_weight, one_each),
            "bbox": LossTerm(giou_loss.sum(), self.bbox_weight, sum_iou),
            "iou": LossTerm(entropy.sum(), self.iou_weight, own),
        }
