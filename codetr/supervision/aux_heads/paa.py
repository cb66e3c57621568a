"""PAA (Kim and Lee 2020, "Probabilistic Anchor Assignment") as an auxiliary head.

Official parameter names (mmdet ``PAAHead``) and ours: ``cls_convs.i.{conv,gn}`` are
``cls_tower.i.{conv,norm}``, ``reg_convs`` likewise; ``atss_cls``, ``atss_reg``,
``atss_centerness`` are ``cls``, ``reg``, ``iou``; ``scales.l.scale`` is ``scales.l``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr.boxes import paired_giou, paired_iou
from codetr.nms import ClasswiseNms
from codetr.structures import Batch, Detections, Images, Losses, LossTerm, Pyramid, TensorStruct
from codetr.supervision.assigners.paa import PaaAssigner
from codetr.supervision.aux_heads.anchors import AnchorGrid, Anchors
from codetr.supervision.aux_heads.coder import DeltaCoder
from codetr.supervision.aux_heads.dense import (
    DensePredictions,
    cell_features,
    conv_tower,
    flatten_level,
    init_dense,
    join_levels,
    level_scales,
    predictor,
)
from codetr.supervision.aux_heads.matched import (
    DenseTargets,
    Matched,
    anchor_candidates,
    boxes_xyxy_px,
    dense_targets,
    divisor,
    match,
)
from codetr.supervision.aux_heads.protocol import AuxOutput
from codetr.supervision.aux_heads.selection import Selection, VotedSelection, detect
from codetr.supervision.criteria.focal import one_hot_labels, sigmoid_focal_loss

GRID = AnchorGrid(scales=(8.0,))
CODER = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2))
ASSIGNER = PaaAssigner()
SELECTION = VotedSelection(nms=ClasswiseNms(iou=0.6), threshold=0.05)
MIN_IOU = 1e-12
"""A positive anchor's box loss has at least this weight."""


@dataclass(frozen=True, kw_only=True)
class Costs(TensorStruct):
    """Per anchor, (B, A), without a mask: ``focal`` loss summed over classes, ``mismatch`` =
    1 - GIoU of the decoded box, and its ``iou``, detached.
    """

    focal: Tensor
    mismatch: Tensor
    iou: Tensor


class PaaHead(nn.Module):
    """One anchor per cell, positive where it predicts its box well; classes by focal loss, boxes
    by GIoU, and a branch that predicts the IoU.

    ``channels`` of the maps (a multiple of 32), ``num_levels`` of the pyramid, ``num_convs`` in
    each tower. The weights of the first two losses also enter the assignment.
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
        super().__init__()
        self.num_classes = num_classes
        self.cls_weight, self.bbox_weight, self.iou_weight = cls_weight, bbox_weight, iou_weight
        self.grid, self.coder, self.assigner, self.selection = grid, coder, assigner, selection
        self.cls_tower = conv_tower(channels, num_convs)
        self.reg_tower = conv_tower(channels, num_convs)
        self.cls = predictor(channels, num_classes)
        self.reg = predictor(channels, 4)
        self.iou = predictor(channels, 1)
        self.scales = level_scales(num_levels)
        init_dense(self, self.cls)

    def forward(self, pyramid: Pyramid, batch: Batch) -> AuxOutput:
        """Losses ``cls``, ``bbox``, ``iou``; candidates are all anchors."""
        anchors = self.grid(pyramid, batch.images.padded_sizes)
        predictions = self.predictions(pyramid)
        matched = self.assign(predictions, anchors, batch)
        return AuxOutput(
            losses=self.losses(predictions, anchors, matched, batch),
            candidates=anchor_candidates(
                anchors.boxes, anchors.usable, matched, cell_features(pyramid), batch.targets
            ),
        )

    def predictions(self, pyramid: Pyramid) -> DensePredictions:
        """``regression`` are offsets from the anchors, ``quality`` is the IoU."""
        return join_levels(
            self._level(features, scale)
            for features, scale in zip(pyramid.maps, self.scales, strict=True)
        )

    def _level(self, features: Tensor, scale: Tensor) -> DensePredictions:
        shape = self.reg_tower(features)
        return DensePredictions(
            logits=flatten_level(self.cls(self.cls_tower(features)), self.num_classes),
            regression=flatten_level(self.reg(shape), 4) * scale,
            quality=flatten_level(self.iou(shape), 1).squeeze(2),
        )

    def propose(self, anchors: Anchors, batch: Batch) -> Tensor:
        """(B, A) the box of every anchor by overlap alone, ``NEGATIVE`` or ``IGNORED``."""
        return torch.stack(
            [
                self.assigner.proposal(anchors.boxes, boxes_xyxy_px(targets.boxes, targets), usable)
                for targets, usable in zip(batch.targets, anchors.usable, strict=True)
            ]
        )

    @torch.no_grad()
    def assign(
        self, predictions: DensePredictions, anchors: Anchors, batch: Batch
    ) -> tuple[Matched, ...]:
        """Targets of every anchor, per image."""
        proposed = self.propose(anchors, batch)
        losses = self.candidate_losses(predictions, anchors, proposed, batch)
        assigned = self.assigner(
            proposed.unbind(),
            losses.unbind(),
            anchors.level_sizes,
            [len(targets) for targets in batch.targets],
        )
        return self._matched(assigned, batch)

    def candidate_losses(
        self, predictions: DensePredictions, anchors: Anchors, proposed: Tensor, batch: Batch
    ) -> Tensor:
        """(B, A) what every anchor would cost with its proposed box."""
        matched = self._matched(proposed.unbind(), batch)
        wanted = dense_targets(matched, batch.targets, anchors.boxes, self.num_classes)
        costs = self.costs(predictions, anchors, wanted)
        return self.cls_weight * costs.focal + self.bbox_weight * costs.mismatch

    def _matched(self, assigned: Sequence[Tensor], batch: Batch) -> tuple[Matched, ...]:
        return tuple(
            match(targets, row, self.num_classes)
            for targets, row in zip(batch.targets, assigned, strict=True)
        )

    def costs(self, predictions: DensePredictions, anchors: Anchors, wanted: DenseTargets) -> Costs:
        """The parts of the losses, anchor by anchor."""
        one_hot = one_hot_labels(wanted.labels, self.num_classes, predictions.logits.dtype)
        boxes = self.coder.decode(anchors.boxes, predictions.regression)
        return Costs(
            focal=sigmoid_focal_loss(predictions.logits, one_hot).sum(dim=2),
            mismatch=1 - paired_giou(boxes, wanted.boxes_px),
            iou=paired_iou(boxes.detach(), wanted.boxes_px),
        )

    def losses(
        self,
        predictions: DensePredictions,
        anchors: Anchors,
        matched: tuple[Matched, ...],
        batch: Batch,
    ) -> Losses:
        """Each term is summed over levels and images before it is divided; nothing is averaged
        over processes, as in mmdet.
        """
        assert predictions.quality is not None
        wanted = dense_targets(matched, batch.targets, anchors.boxes, self.num_classes)
        costs = self.costs(predictions, anchors, wanted)
        num_pos = wanted.positive.sum().to(costs.iou.dtype)
        mismatch = costs.mismatch * costs.iou.clamp(min=MIN_IOU) * wanted.positive
        entropy = F.binary_cross_entropy_with_logits(
            predictions.quality, costs.iou, reduction="none"
        )
        entropy = entropy * wanted.positive
        sum_iou = divisor((costs.iou * wanted.positive).sum())
        focal = (costs.focal * anchors.usable).sum() / divisor(num_pos, minimum=len(batch))
        return {
            "cls": LossTerm(focal, self.cls_weight),
            "bbox": LossTerm(mismatch.sum() / sum_iou, self.bbox_weight),
            "iou": LossTerm(entropy.sum() / divisor(num_pos), self.iou_weight),
        }

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[Detections, ...]:
        """Detections per image; scores are the root of class probability times IoU."""
        anchors = self.grid(pyramid, images.padded_sizes)
        predictions = self.predictions(pyramid)
        boxes = self.coder.decode(anchors.boxes, predictions.regression)
        return detect(self.selection, predictions, boxes, anchors.level_sizes, images.sizes)
