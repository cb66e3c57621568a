"""GFL (Li et al. 2020, "Generalized Focal Loss") as an auxiliary head.

Official parameter names (mmdet ``GFLHead``) and ours: ``cls_convs.i.{conv,gn}`` are
``cls_tower.i.{conv,norm}``, ``reg_convs`` likewise; ``gfl_cls``, ``gfl_reg`` are ``cls``, ``reg``;
``scales.l.scale`` is ``scales.l``; the constant ``integral.project`` (0, 1, ...) is not kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codetr.boxes import paired_giou, paired_iou
from codetr.distributed import mean_over_ranks
from codetr.nms import ClasswiseNms
from codetr.structures import Batch, Detections, Images, Losses, LossTerm, Pyramid, TensorStruct
from codetr.supervision.assigners.atss import AtssAssigner
from codetr.supervision.aux_heads.anchors import AnchorGrid, Anchors
from codetr.supervision.aux_heads.coder import centres_xyxy, decode_distances, encode_distances
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
    count_positives,
    dense_targets,
    divisor,
    match,
)
from codetr.supervision.aux_heads.protocol import AuxOutput
from codetr.supervision.aux_heads.selection import DenseSelection, Selection, detect
from codetr.supervision.criteria.focal import (
    distribution_focal_loss,
    one_hot_labels,
    quality_focal_loss,
)

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


class GflHead(nn.Module):
    """One anchor per cell; classes learn the IoU of their box, each side a distribution of its
    distance over ``bins`` + 1 values, in strides.

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
        bins: int = 16,
        cls_weight: float = 1.0,
        bbox_weight: float = 2.0,
        dfl_weight: float = 0.25,
        grid: AnchorGrid = GRID,
        assigner: AtssAssigner = ASSIGNER,
        selection: Selection = SELECTION,
    ) -> None:
        super().__init__()
        self.num_classes, self.bins = num_classes, bins
        self.cls_weight, self.bbox_weight, self.dfl_weight = cls_weight, bbox_weight, dfl_weight
        self.grid, self.assigner, self.selection = grid, assigner, selection
        self.cls_tower = conv_tower(channels, num_convs)
        self.reg_tower = conv_tower(channels, num_convs)
        self.cls = predictor(channels, num_classes)
        self.reg = predictor(channels, 4 * (bins + 1))
        self.scales = level_scales(num_levels)
        init_dense(self, self.cls)

    def forward(self, pyramid: Pyramid, batch: Batch) -> AuxOutput:
        """Losses ``cls``, ``bbox``, ``dfl``; candidates are all anchors."""
        anchors = self.grid(pyramid, batch.images.padded_sizes)
        matched = self.assign(anchors, batch)
        return AuxOutput(
            losses=self.losses(self.predictions(pyramid), anchors, matched, batch),
            candidates=anchor_candidates(
                anchors.boxes, anchors.usable, matched, cell_features(pyramid), batch.targets
            ),
        )

    def predictions(self, pyramid: Pyramid) -> DensePredictions:
        """``regression`` are the logits of the bins: left, top, right, bottom."""
        return join_levels(
            DensePredictions(
                logits=flatten_level(self.cls(self.cls_tower(features)), self.num_classes),
                regression=flatten_level(self.reg(self.reg_tower(features)), 4 * (self.bins + 1))
                * scale,
            )
            for features, scale in zip(pyramid.maps, self.scales, strict=True)
        )

    def distances(self, regression: Tensor) -> Tensor:
        """(..., 4) expected distances in strides, from the bins' logits (..., 4 * (bins + 1))."""
        bins = torch.arange(self.bins + 1, device=regression.device, dtype=regression.dtype)
        return regression.unflatten(-1, (4, -1)).softmax(dim=-1) @ bins

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

    def goals(self, predictions: DensePredictions, anchors: Anchors, wanted: DenseTargets) -> Goals:
        """Targets that depend on the predictions, and what they are compared with."""
        sides = encode_distances(centres_xyxy(anchors.boxes), wanted.boxes_px)
        sides = sides / anchors.strides[:, None]
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
        self,
        predictions: DensePredictions,
        anchors: Anchors,
        matched: tuple[Matched, ...],
        batch: Batch,
    ) -> Losses:
        """Each term is summed over levels and images before it is divided."""
        wanted = dense_targets(matched, batch.targets, anchors.boxes, self.num_classes)
        goals = self.goals(predictions, anchors, wanted)
        count = count_positives(wanted.positive).to(goals.weight.dtype)
        totals = mean_over_ranks(torch.stack([count, goals.weight.sum()]))
        num_pos, sum_weight = divisor(totals, minimum=1).unbind()

        quality = one_hot_labels(wanted.labels, self.num_classes, predictions.logits.dtype)
        quality = quality * goals.quality[..., None]
        cls = quality_focal_loss(predictions.logits, quality).sum(dim=2) * anchors.usable
        mismatch = (1 - paired_giou(goals.predicted, goals.boxes)) * goals.weight
        bins = predictions.regression.unflatten(-1, (4, -1))
        spread = distribution_focal_loss(bins, goals.distances).mean(dim=2) * goals.weight
        return {
            "cls": LossTerm(cls.sum() / num_pos, self.cls_weight),
            "bbox": LossTerm(mismatch.sum() / sum_weight, self.bbox_weight),
            "dfl": LossTerm(spread.sum() / sum_weight, self.dfl_weight),
        }

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[Detections, ...]:
        """Detections per image; scores are class probabilities."""
        anchors = self.grid(pyramid, images.padded_sizes)
        predictions = self.predictions(pyramid)
        sides = self.distances(predictions.regression) * anchors.strides[:, None]
        boxes = decode_distances(centres_xyxy(anchors.boxes), sides)
        return detect(self.selection, predictions, boxes, anchors.level_sizes, images.sizes)
