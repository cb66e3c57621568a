"""FCOS (Tian et al. 2019) as an auxiliary head, in its plain variant: no centre sampling,
distances in pixels, centerness beside the classifier.

Official parameter names (mmdet ``FCOSHead``) and ours, beside those in ``dense``: ``conv_cls``,
``conv_reg``, ``conv_centerness`` are ``cls``, ``reg``, ``centerness``.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from codetr.boxes import centerness, decode_distances, encode_distances, paired_iou
from codetr.loss_terms import Count, Losses, LossTerm
from codetr.nms import ClasswiseNms
from codetr.structures import Pyramid
from codetr.supervision.assigners.points import PointAssigner
from codetr.supervision.aux_heads.anchors import PointGrid, Points
from codetr.supervision.aux_heads.dense import DenseBranches, DensePredictions
from codetr.supervision.aux_heads.layers import predictor
from codetr.supervision.aux_heads.matched import DenseTargets
from codetr.supervision.aux_heads.selection import DenseSelection, Selection
from codetr.supervision.criteria.focal import focal_loss_of_labels, quality_entropy

GRID = PointGrid()
ASSIGNER = PointAssigner()
SELECTION = DenseSelection(nms=ClasswiseNms(iou=0.5), threshold=0.05)
MIN_IOU = 1e-6
"""Lower bound of the IoU in the logarithm."""


class FcosHead(DenseBranches[Points]):
    """One point per cell; losses ``cls`` (focal), ``bbox`` (IoU) and ``centerness``, which a branch
    beside the classifier predicts. Points in an image's padding are background like any other.
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
        super().__init__(num_classes, channels, num_convs, grid, selection)
        self.cls_weight, self.bbox_weight = cls_weight, bbox_weight
        self.centerness_weight = centerness_weight
        self.assigner = assigner
        self.centerness = predictor(channels, 1)
        self.finish_init(num_levels)

    def quality(self, classification: Tensor, regression: Tensor) -> Tensor:
        """The centerness."""
        return self.centerness(classification)

    def predictions(self, pyramid: Pyramid) -> DensePredictions:
        """``regression`` are distances in pixels, whose logarithms the branch predicts."""
        found = super().predictions(pyramid)
        return replace(found, regression=found.regression.exp())

    def decode(self, priors: Points, regression: Tensor) -> Tensor:
        """From distances in pixels."""
        return decode_distances(priors.centres, regression)

    def assign_image(self, priors: Points, boxes_px: Tensor, usable: Tensor) -> Tensor:
        """The smallest box around a point, within the regression range of its level."""
        return self.assigner(priors.centres, priors.reach, boxes_px)

    def losses(self, predictions: DensePredictions, priors: Points, wanted: DenseTargets) -> Losses:
        """Divided by the positives, ``bbox`` by their centerness: means over processes."""
        assert predictions.quality is not None
        quality = centerness(encode_distances(priors.centres, wanted.boxes_px)) * wanted.positive
        num_pos = Count(wanted.positive.sum().to(quality.dtype))
        sum_quality = Count(quality.sum(), minimum=1e-6)

        focal = focal_loss_of_labels(predictions.logits, wanted.labels)
        boxes = self.decode(priors, predictions.regression)
        iou_loss = -paired_iou(boxes, wanted.boxes_px).clamp(min=MIN_IOU).log() * quality
        entropy = quality_entropy(predictions.quality, quality, wanted.positive)
        return {
            "cls": LossTerm(focal.sum(), self.cls_weight, num_pos),
            "bbox": LossTerm(iou_loss.sum(), self.bbox_weight, sum_quality),
            "centerness": LossTerm(entropy.sum(), self.centerness_weight, num_pos),
        }
