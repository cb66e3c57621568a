"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection") as an auxiliary head.

Official parameter names (mmdet ``RetinaHead``) and ours, beside those in ``dense``: ``retina_cls``,
``retina_reg`` are ``cls``, ``reg``.
"""

from __future__ import annotations

from torch import Tensor

from codetr.loss_terms import Count, Losses, LossTerm
from codetr.nms import ClasswiseNms
from codetr.structures import Batch, Candidates, Pyramid
from codetr.supervision.assigners.max_iou import MaxIouAssigner
from codetr.supervision.assigners.sampling import positives_first
from codetr.supervision.aux_heads.anchors import AnchorGrid, Anchors, DeltaCoder
from codetr.supervision.aux_heads.dense import AnchorBranches, DensePredictions
from codetr.supervision.aux_heads.matched import DenseTargets, candidates, count_positives
from codetr.supervision.aux_heads.selection import DenseSelection, Selection
from codetr.supervision.criteria.focal import focal_loss_of_labels

GRID = AnchorGrid(scales=tuple(4 * 2 ** (octave / 3) for octave in range(3)), ratios=(0.5, 1, 2))
CODER = DeltaCoder(stds=(1, 1, 1, 1))
ASSIGNER = MaxIouAssigner(positive=0.5, negative=0.4, low_quality=0.0)
SELECTION = DenseSelection(nms=ClasswiseNms(iou=0.5), threshold=0.05)
MAX_CANDIDATES = 2000


class RetinaNetHead(AnchorBranches):
    """Nine anchors per cell, towers without norm; losses ``cls`` (focal) and ``bbox`` (L1 of the
    offsets).
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
        super().__init__(
            num_classes,
            channels,
            num_convs,
            grid,
            selection,
            per_cell=grid.per_cell,
            normalised=False,
        )
        self.cls_weight, self.bbox_weight = cls_weight, bbox_weight
        self.coder, self.assigner = coder, assigner
        self.finish_init()

    def assign_image(self, priors: Anchors, boxes_px: Tensor, usable: Tensor) -> Tensor:
        """By overlap."""
        return self.assigner(priors.boxes, boxes_px, usable)

    def losses(
        self, predictions: DensePredictions, priors: Anchors, wanted: DenseTargets
    ) -> Losses:
        """Both are divided by the positives of this process alone, as in mmdet."""
        number = count_positives(wanted.positive).to(predictions.logits.dtype)
        num_pos = Count(number, shared=False)
        focal = focal_loss_of_labels(predictions.logits, wanted.labels).sum(dim=2) * ~wanted.ignored
        offsets = self.coder.encode(priors.boxes, wanted.boxes_px)
        distance = (predictions.regression - offsets).abs().sum(dim=2) * wanted.positive
        return {
            "cls": LossTerm(focal.sum(), self.cls_weight, num_pos),
            "bbox": LossTerm(distance.sum(), self.bbox_weight, num_pos),
        }

    def candidates(
        self, pyramid: Pyramid, priors: Anchors, wanted: DenseTargets, batch: Batch
    ) -> tuple[Candidates, ...]:
        """The positive anchors, and background drawn at random up to ``MAX_CANDIDATES``: features
        of all anchors would be nine copies of the maps. Ignored anchors count as background here,
        unusable ones have zero coordinates, both as the official code of ATSS does it.
        """
        cells = pyramid.tokens()
        found = []
        for image, targets in enumerate(batch.targets):
            index = positives_first(wanted.positive[image], MAX_CANDIDATES)
            boxes = priors.boxes[index] * priors.usable[image, index, None]
            features = cells[image, index // self.per_cell]
            found.append(candidates(boxes, wanted.matched[image].take(index), features, targets))
        return tuple(found)
