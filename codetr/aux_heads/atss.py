"""ATSS (Zhang et al. 2020) as an auxiliary head.

Official parameter names (mmdet ``ATSSHead``) and ours: ``cls_convs.i.{conv,gn}`` are
``cls_tower.i.{conv,norm}``, ``reg_convs`` likewise; ``atss_cls``, ``atss_reg``,
``atss_centerness`` are ``cls``, ``reg``, ``centerness``; ``scales.l.scale`` is ``scales.l``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr.assigners.atss import AtssAssigner
from codetr.aux_heads.anchors import AnchorGrid, Anchors
from codetr.aux_heads.coder import DeltaCoder
from codetr.aux_heads.dense import (
    PRIOR_LOGIT,
    cell_features,
    conv_tower,
    flatten_level,
    init_convs,
    level_scales,
)
from codetr.aux_heads.detections import ClasswiseNms, DenseSelection, Detections
from codetr.aux_heads.matched import Matched, boxes_xyxy_px, candidates, match
from codetr.aux_heads.precision import at_least_float32
from codetr.aux_heads.protocol import AuxOutput
from codetr.boxes import clip_xyxy, paired_giou
from codetr.criteria.focal import one_hot_labels, sigmoid_focal_loss
from codetr.distributed import mean_over_ranks
from codetr.structures import Batch, Images, Losses, LossTerm, Pyramid, TensorStruct

GRID = AnchorGrid(scales=(8.0,))
CODER = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2))
ASSIGNER = AtssAssigner()
SELECTION = DenseSelection(nms=ClasswiseNms(iou=0.6))


@dataclass(frozen=True, kw_only=True)
class AtssPredictions(TensorStruct):
    """For all A anchors of all levels: ``logits`` (B, A, K), ``deltas`` (B, A, 4),
    ``centerness`` (B, A) logits; at least float32.
    """

    logits: Tensor
    deltas: Tensor
    centerness: Tensor


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
        selection: DenseSelection = SELECTION,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_weight, self.bbox_weight = cls_weight, bbox_weight
        self.centerness_weight = centerness_weight
        self.grid, self.coder, self.assigner, self.selection = grid, coder, assigner, selection
        self.cls_tower = conv_tower(channels, num_convs)
        self.reg_tower = conv_tower(channels, num_convs)
        self.cls = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.reg = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = level_scales(num_levels)
        init_convs(self)
        nn.init.constant_(self.cls.bias, PRIOR_LOGIT)  # type: ignore[arg-type]

    def forward(self, pyramid: Pyramid, batch: Batch) -> AuxOutput:
        """Losses ``cls``, ``bbox``, ``centerness``; candidates are all anchors (B, A): unusable
        ones are background with zero coordinates.
        """
        anchors = self.grid(pyramid, batch.images.padded_sizes)
        matched = self.assign(anchors, batch)
        features = cell_features(pyramid, self.grid.per_cell)
        return AuxOutput(
            losses=self.losses(self.predictions(pyramid), anchors, matched, batch),
            candidates=tuple(
                candidates(anchors.boxes * usable[:, None], m, f, t)
                for usable, m, f, t in zip(
                    anchors.usable, matched, features, batch.targets, strict=True
                )
            ),
        )

    def predictions(self, pyramid: Pyramid) -> AtssPredictions:
        """What the branches say at every anchor."""
        logits, deltas, centerness = [], [], []
        for features, scale in zip(pyramid.maps, self.scales, strict=True):
            shape = self.reg_tower(features)
            logits.append(flatten_level(self.cls(self.cls_tower(features)), self.num_classes))
            deltas.append(at_least_float32(flatten_level(self.reg(shape), 4)) * scale)
            centerness.append(flatten_level(self.centerness(shape), 1).squeeze(2))
        return AtssPredictions(
            logits=at_least_float32(torch.cat(logits, dim=1)),
            deltas=torch.cat(deltas, dim=1),
            centerness=at_least_float32(torch.cat(centerness, dim=1)),
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
        predictions: AtssPredictions,
        anchors: Anchors,
        matched: tuple[Matched, ...],
        batch: Batch,
    ) -> Losses:
        """Each term is summed over levels and images before it is divided (no loss per level)."""
        labels = torch.stack([m.labels for m in matched])
        positive = labels < self.num_classes
        boxes = torch.stack(
            [boxes_xyxy_px(m.boxes, t) for m, t in zip(matched, batch.targets, strict=True)]
        )
        # An anchor is its own target where it has none: finite everywhere, masked below.
        boxes = torch.where(positive[..., None], boxes, anchors.boxes)
        quality = centerness_target(anchors.boxes, boxes) * positive
        num_pos, sum_quality = self._normalisers(positive, quality)

        one_hot = one_hot_labels(labels, self.num_classes, predictions.logits.dtype)
        focal = sigmoid_focal_loss(predictions.logits, one_hot).sum(dim=2) * anchors.usable
        giou = paired_giou(self.coder.decode(anchors.boxes, predictions.deltas), boxes)
        entropy = F.binary_cross_entropy_with_logits(
            predictions.centerness, quality, reduction="none"
        )
        return {
            "cls": LossTerm(focal.sum() / num_pos, self.cls_weight),
            "bbox": LossTerm(((1 - giou) * quality).sum() / sum_quality, self.bbox_weight),
            "centerness": LossTerm((entropy * positive).sum() / num_pos, self.centerness_weight),
        }

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[Detections, ...]:
        """Detections per image; scores are class probability times centerness."""
        anchors = self.grid(pyramid, images.padded_sizes)
        predictions = self.predictions(pyramid)
        boxes = self.coder.decode(anchors.boxes, predictions.deltas)
        return tuple(
            self.selection(scores, clip_xyxy(box, size.flip(0)), anchors.level_sizes, quality)
            for scores, box, size, quality in zip(
                predictions.logits.sigmoid(),
                boxes,
                images.sizes,
                predictions.centerness.sigmoid(),
                strict=True,
            )
        )

    @staticmethod
    def _normalisers(positive: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Positives (at least 1 per image) and sum of centerness, averaged over processes."""
        num_pos = positive.sum(dim=1).clamp(min=1).sum().to(quality.dtype)
        mean = mean_over_ranks(torch.stack([num_pos, quality.sum()])).clamp(min=1)
        num_pos, sum_quality = (mean + torch.finfo(mean.dtype).eps).unbind()
        return num_pos, sum_quality


def centerness_target(anchors_xyxy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """(...,) sqrt of the ratios of the near to the far distance from an anchor's centre to the
    sides of its box, per axis (Tian et al. 2019, eq. 3); 1 in the middle, 0 on a side.
    """
    centre = (anchors_xyxy[..., :2] + anchors_xyxy[..., 2:]) / 2
    low, high = centre - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - centre
    return (torch.minimum(low, high) / torch.maximum(low, high)).prod(dim=-1).sqrt()
