"""FCOS (Tian et al. 2019) as an auxiliary head, in its plain variant: no centre sampling,
distances in pixels, centerness beside the classifier.

Official parameter names (mmdet ``FCOSHead``) and ours: ``cls_convs.i.{conv,gn}`` are
``cls_tower.i.{conv,norm}``, ``reg_convs`` likewise; ``conv_cls``, ``conv_reg``,
``conv_centerness`` are ``cls``, ``reg``, ``centerness``; ``scales.l.scale`` is ``scales.l``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr.boxes import paired_iou
from codetr.distributed import mean_over_ranks
from codetr.nms import ClasswiseNms
from codetr.structures import Batch, Detections, Images, Losses, LossTerm, Pyramid
from codetr.supervision.assigners.points import PointAssigner
from codetr.supervision.aux_heads.anchors import PointGrid, Points
from codetr.supervision.aux_heads.coder import centerness, decode_distances, encode_distances
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
    boxes_xyxy_px,
    candidates,
    dense_targets,
    divisor,
    match,
)
from codetr.supervision.aux_heads.protocol import AuxOutput
from codetr.supervision.aux_heads.selection import DenseSelection, Selection, detect
from codetr.supervision.criteria.focal import one_hot_labels, sigmoid_focal_loss

GRID = PointGrid()
ASSIGNER = PointAssigner()
SELECTION = DenseSelection(nms=ClasswiseNms(iou=0.5), threshold=0.05)
MIN_IOU = 1e-6
"""The logarithm of an overlap is taken of at least this."""


class FcosHead(nn.Module):
    """One point per cell; classes by focal loss, distances by IoU loss, and a centerness branch.

    ``channels`` of the maps (a multiple of 32), ``num_levels`` of the pyramid, ``num_convs`` in
    each tower. Points in an image's padding are background like any other.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        num_levels: int,
        num_convs: int = 1,
        cls_weight: float = 1.0,
        bbox_weight: float = 1.0,
        centerness_weight: float = 1.0,
        grid: PointGrid = GRID,
        assigner: PointAssigner = ASSIGNER,
        selection: Selection = SELECTION,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_weight, self.bbox_weight = cls_weight, bbox_weight
        self.centerness_weight = centerness_weight
        self.grid, self.assigner, self.selection = grid, assigner, selection
        self.cls_tower = conv_tower(channels, num_convs)
        self.reg_tower = conv_tower(channels, num_convs)
        self.cls = predictor(channels, num_classes)
        self.reg = predictor(channels, 4)
        self.centerness = predictor(channels, 1)
        self.scales = level_scales(num_levels)
        init_dense(self, self.cls)

    def forward(self, pyramid: Pyramid, batch: Batch) -> AuxOutput:
        """Losses ``cls``, ``bbox``, ``centerness``; candidates are the squares about all points."""
        points = self.grid(pyramid)
        matched = self.assign(points, batch)
        features = cell_features(pyramid)
        return AuxOutput(
            losses=self.losses(self.predictions(pyramid), points, matched, batch),
            candidates=tuple(
                candidates(points.boxes, *parts)
                for parts in zip(matched, features, batch.targets, strict=True)
            ),
        )

    def predictions(self, pyramid: Pyramid) -> DensePredictions:
        """``regression`` are distances in pixels, ``quality`` is the centerness."""
        return join_levels(
            self._level(features, scale)
            for features, scale in zip(pyramid.maps, self.scales, strict=True)
        )

    def _level(self, features: Tensor, scale: Tensor) -> DensePredictions:
        kind = self.cls_tower(features)
        return DensePredictions(
            logits=flatten_level(self.cls(kind), self.num_classes),
            regression=(flatten_level(self.reg(self.reg_tower(features)), 4) * scale).exp(),
            quality=flatten_level(self.centerness(kind), 1).squeeze(2),
        )

    def assign(self, points: Points, batch: Batch) -> tuple[Matched, ...]:
        """Targets of every point, per image."""
        return tuple(
            match(
                targets,
                self.assigner(points.centres, points.reach, boxes_xyxy_px(targets.boxes, targets)),
                self.num_classes,
            )
            for targets in batch.targets
        )

    def losses(
        self,
        predictions: DensePredictions,
        points: Points,
        matched: tuple[Matched, ...],
        batch: Batch,
    ) -> Losses:
        """Each term is summed over levels and images before it is divided."""
        assert predictions.quality is not None
        wanted = dense_targets(matched, batch.targets, points.boxes, self.num_classes)
        quality = centerness(encode_distances(points.centres, wanted.boxes_px)) * wanted.positive
        totals = torch.stack([wanted.positive.sum().to(quality.dtype), quality.sum()])
        count, sum_quality = mean_over_ranks(totals).unbind()
        num_pos = divisor(count, minimum=1)

        one_hot = one_hot_labels(wanted.labels, self.num_classes, predictions.logits.dtype)
        focal = sigmoid_focal_loss(predictions.logits, one_hot)
        boxes = decode_distances(points.centres, predictions.regression)
        surprise = -paired_iou(boxes, wanted.boxes_px).clamp(min=MIN_IOU).log() * quality
        entropy = F.binary_cross_entropy_with_logits(predictions.quality, quality, reduction="none")
        entropy = entropy * wanted.positive
        return {
            "cls": LossTerm(focal.sum() / num_pos, self.cls_weight),
            "bbox": LossTerm(surprise.sum() / divisor(sum_quality, 1e-6), self.bbox_weight),
            "centerness": LossTerm(entropy.sum() / num_pos, self.centerness_weight),
        }

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[Detections, ...]:
        """Detections per image; scores are class probability times centerness."""
        points = self.grid(pyramid)
        predictions = self.predictions(pyramid)
        boxes = decode_distances(points.centres, predictions.regression)
        return detect(self.selection, predictions, boxes, points.level_sizes, images.sizes)
