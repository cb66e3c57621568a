"""ATSS (Zhang et al. 2020) as an auxiliary head.

Official parameter names (mmdet ``ATSSHead``) and ours: ``cls_convs.i.{conv,gn}`` are
``cls_tower.i.{conv,norm}``, ``reg_convs`` likewise; ``atss_cls``, ``atss_reg``,
``atss_centerness`` are ``cls``, ``reg``, ``centerness``; ``scales.l.scale`` is ``scales.l``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr.boxes import paired_giou
from codetr.distributed import mean_over_ranks
from codetr.nms import ClasswiseNms
from codetr.structures import Batch, Detections, Images, Losses, LossTerm, Pyramid
from codetr.supervision.assigners.atss import AtssAssigner
from codetr.supervision.aux_heads.anchors import AnchorGrid, Anchors
from codetr.supervision.aux_heads.coder import (
    DeltaCoder,
    centerness,
    centres_xyxy,
    encode_distances,
)
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
    Matched,
    anchor_candidates,
    boxes_xyxy_px,
    count_positives,
    dense_targets,
    divisor,
    match,
)
from codetr.supervision.aux_heads.protocol import AuxOutput
from codetr.supervision.aux_heads.selection import DenseSelection, Selection, detect
from codetr.supervision.criteria.focal import one_hot_labels, sigmoid_focal_loss

GRID = AnchorGrid(scales=(8.0,))
CODER = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2))
ASSIGNER = AtssAssigner()
SELECTION = DenseSelection(nms=ClasswiseNms(iou=0.6))


class AtssHead(nn.Module):
    """One anchor per cell; classes by focal loss, boxes by GIoU, and a centerness branch.

    ``channels`` of the maps (a multiple of 32), ``num_levels`` of the pyramid, ``num_convs`` in
    each tower.
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
        super().__init__()
        self.num_classes = num_classes
        self.cls_weight, self.bbox_weight = cls_weight, bbox_weight
        self.centerness_weight = centerness_weight
        self.grid, self.coder, self.assigner, self.selection = grid, coder, assigner, selection
        self.cls_tower = conv_tower(channels, num_convs)
        self.reg_tower = conv_tower(channels, num_convs)
        self.cls = predictor(channels, num_classes)
        self.reg = predictor(channels, 4)
        self.centerness = predictor(channels, 1)
        self.scales = level_scales(num_levels)
        init_dense(self, self.cls)

    def forward(self, pyramid: Pyramid, batch: Batch) -> AuxOutput:
        """Losses ``cls``, ``bbox``, ``centerness``; candidates are all anchors."""
        anchors = self.grid(pyramid, batch.images.padded_sizes)
        matched = self.assign(anchors, batch)
        return AuxOutput(
            losses=self.losses(self.predictions(pyramid), anchors, matched, batch),
            candidates=anchor_candidates(
                anchors.boxes, anchors.usable, matched, cell_features(pyramid), batch.targets
            ),
        )

    def predictions(self, pyramid: Pyramid) -> DensePredictions:
        """``regression`` are offsets from the anchors, ``quality`` is the centerness."""
        return join_levels(
            self._level(features, scale)
            for features, scale in zip(pyramid.maps, self.scales, strict=True)
        )

    def _level(self, features: Tensor, scale: Tensor) -> DensePredictions:
        shape = self.reg_tower(features)
        return DensePredictions(
            logits=flatten_level(self.cls(self.cls_tower(features)), self.num_classes),
            regression=flatten_level(self.reg(shape), 4) * scale,
            quality=flatten_level(self.centerness(shape), 1).squeeze(2),
        )

    def assign(self, anchors: Anchors, batch: Batch) -> tuple[Matched, ...]:
        """Targets of every anchor, per image."""
        return tuple(
            match(
                targets,
                self.assigner(
                    anchors.boxes,
                    anchors.level_sizes,
                    boxes_xyxy_px(targets.boxes, targets),
                    usable,
                ),
                self.num_classes,
            )
            for targets, usable in zip(batch.targets, anchors.usable, strict=True)
        )

    def losses(
        self,
        predictions: DensePredictions,
        anchors: Anchors,
        matched: tuple[Matched, ...],
        batch: Batch,
    ) -> Losses:
        """Each term is summed over levels and images before it is divided (no loss per level)."""
        assert predictions.quality is not None
        wanted = dense_targets(matched, batch.targets, anchors.boxes, self.num_classes)
        sides = encode_distances(centres_xyxy(anchors.boxes), wanted.boxes_px)
        quality = centerness(sides) * wanted.positive
        totals = torch.stack([count_positives(wanted.positive).to(quality.dtype), quality.sum()])
        num_pos, sum_quality = divisor(mean_over_ranks(totals), minimum=1).unbind()

        one_hot = one_hot_labels(wanted.labels, self.num_classes, predictions.logits.dtype)
        focal = sigmoid_focal_loss(predictions.logits, one_hot).sum(dim=2) * anchors.usable
        boxes = self.coder.decode(anchors.boxes, predictions.regression)
        mismatch = (1 - paired_giou(boxes, wanted.boxes_px)) * quality
        entropy = F.binary_cross_entropy_with_logits(predictions.quality, quality, reduction="none")
        entropy = entropy * wanted.positive
        return {
            "cls": LossTerm(focal.sum() / num_pos, self.cls_weight),
            "bbox": LossTerm(mismatch.sum() / sum_quality, self.bbox_weight),
            "centerness": LossTerm(entropy.sum() / num_pos, self.centerness_weight),
        }

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[Detections, ...]:
        """Detections per image; scores are class probability times centerness."""
        anchors = self.grid(pyramid, images.padded_sizes)
        predictions = self.predictions(pyramid)
        boxes = self.coder.decode(anchors.boxes, predictions.regression)
        return detect(self.selection, predictions, boxes, anchors.level_sizes, images.sizes)
