"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection") as an auxiliary head.

Official parameter names (mmdet ``RetinaHead``) and ours: ``cls_convs.i.conv`` and
``reg_convs.i.conv`` are ``cls_tower.i.conv`` and ``reg_tower.i.conv``; ``retina_cls``,
``retina_reg`` are ``cls``, ``reg``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codetr.nms import ClasswiseNms
from codetr.structures import Batch, Candidates, Detections, Images, Losses, LossTerm, Pyramid
from codetr.supervision.assigners.max_iou import IGNORED, MaxIouAssigner
from codetr.supervision.aux_heads.anchors import AnchorGrid, Anchors
from codetr.supervision.aux_heads.coder import DeltaCoder
from codetr.supervision.aux_heads.dense import (
    DensePredictions,
    cell_features,
    conv_tower,
    flatten_level,
    init_dense,
    join_levels,
    predictor,
)
from codetr.supervision.aux_heads.matched import (
    boxes_xyxy_px,
    candidates,
    count_positives,
    dense_targets,
    divisor,
    match,
)
from codetr.supervision.aux_heads.protocol import AuxOutput
from codetr.supervision.aux_heads.selection import DenseSelection, Selection, detect
from codetr.supervision.criteria.focal import one_hot_labels, sigmoid_focal_loss

GRID = AnchorGrid(scales=tuple(4 * 2 ** (octave / 3) for octave in range(3)), ratios=(0.5, 1, 2))
CODER = DeltaCoder(stds=(1, 1, 1, 1))
ASSIGNER = MaxIouAssigner(positive=0.5, negative=0.4, low_quality=0.0)
SELECTION = DenseSelection(nms=ClasswiseNms(iou=0.5), threshold=0.05)
MAX_CANDIDATES = 2000


class RetinaNetHead(nn.Module):
    """Nine anchors per cell; classes by focal loss, offsets by L1; towers without norm.

    ``channels`` of the maps, ``num_convs`` in each tower.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        num_convs: int = 1,
        cls_weight: float = 1.0,
        bbox_weight: float = 1.0,
        grid: AnchorGrid = GRID,
        coder: DeltaCoder = CODER,
        assigner: MaxIouAssigner = ASSIGNER,
        selection: Selection = SELECTION,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_weight, self.bbox_weight = cls_weight, bbox_weight
        self.grid, self.coder, self.assigner, self.selection = grid, coder, assigner, selection
        self.cls_tower = conv_tower(channels, num_convs, normalised=False)
        self.reg_tower = conv_tower(channels, num_convs, normalised=False)
        self.cls = predictor(channels, grid.per_cell * num_classes)
        self.reg = predictor(channels, grid.per_cell * 4)
        init_dense(self, self.cls)

    def forward(self, pyramid: Pyramid, batch: Batch) -> AuxOutput:
        """Losses ``cls``, ``bbox``; candidates are all positive anchors and some others."""
        anchors = self.grid(pyramid, batch.images.padded_sizes)
        assigned = self.assign(anchors, batch)
        return AuxOutput(
            losses=self.losses(self.predictions(pyramid), anchors, assigned, batch),
            candidates=self.candidates(pyramid, anchors, assigned, batch),
        )

    def predictions(self, pyramid: Pyramid) -> DensePredictions:
        """``regression`` are offsets from the anchors."""
        return join_levels(
            DensePredictions(
                logits=flatten_level(self.cls(self.cls_tower(features)), self.num_classes),
                regression=flatten_level(self.reg(self.reg_tower(features)), 4),
            )
            for features in pyramid.maps
        )

    def assign(self, anchors: Anchors, batch: Batch) -> Tensor:
        """(B, A) the box of every anchor, ``NEGATIVE`` or ``IGNORED``."""
        return torch.stack(
            [
                self.assigner(anchors.boxes, boxes_xyxy_px(targets.boxes, targets), usable)
                for targets, usable in zip(batch.targets, anchors.usable, strict=True)
            ]
        )

    def losses(
        self, predictions: DensePredictions, anchors: Anchors, assigned: Tensor, batch: Batch
    ) -> Losses:
        """Both terms are divided by the positives of this process alone, as in mmdet."""
        matched = [
            match(t, row, self.num_classes) for t, row in zip(batch.targets, assigned, strict=True)
        ]
        wanted = dense_targets(matched, batch.targets, anchors.boxes, self.num_classes)
        num_pos = divisor(count_positives(wanted.positive).to(predictions.logits.dtype))
        one_hot = one_hot_labels(wanted.labels, self.num_classes, predictions.logits.dtype)
        focal = sigmoid_focal_loss(predictions.logits, one_hot).sum(dim=2) * (assigned != IGNORED)
        offsets = self.coder.encode(anchors.boxes, wanted.boxes_px)
        distance = (predictions.regression - offsets).abs().sum(dim=2) * wanted.positive
        return {
            "cls": LossTerm(focal.sum() / num_pos, self.cls_weight),
            "bbox": LossTerm(distance.sum() / num_pos, self.bbox_weight),
        }

    def candidates(
        self, pyramid: Pyramid, anchors: Anchors, assigned: Tensor, batch: Batch
    ) -> tuple[Candidates, ...]:
        """The positive anchors, and background drawn at random up to ``MAX_CANDIDATES``: features
        of all anchors would be nine copies of the maps. Ignored anchors count as background here,
        unusable ones have zero coordinates, both as the official code of ATSS does it.
        """
        cells = cell_features(pyramid)
        found = []
        for image, targets in enumerate(batch.targets):
            index = positives_first(assigned[image] >= 0, MAX_CANDIDATES)
            boxes = anchors.boxes[index] * anchors.usable[image, index, None]
            features = cells[image, index // self.grid.per_cell]
            matched = match(targets, assigned[image, index], self.num_classes)
            found.append(candidates(boxes, matched, features, targets))
        return tuple(found)

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[Detections, ...]:
        """Detections per image; scores are class probabilities."""
        anchors = self.grid(pyramid, images.padded_sizes)
        predictions = self.predictions(pyramid)
        boxes = self.coder.decode(anchors.boxes, predictions.regression)
        return detect(self.selection, predictions, boxes, anchors.level_sizes, images.sizes)


def positives_first(positive: Tensor, limit: int) -> Tensor:
    """At most ``limit`` indices into ``positive`` (A,) bool, random but for the order: no False
    one before a True one. The draw is made on the CPU, so that a seed gives it on every device.
    """
    draw = torch.rand(len(positive)).to(positive.device, non_blocking=True)
    return (draw + positive).topk(min(limit, len(positive))).indices
