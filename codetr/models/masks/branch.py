"""From the boxes of a detector to their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from codetr.masks import Masks
from codetr.models.masks.refine import REFINED_FROM, RefineMaskHead, refined
from codetr.models.masks.scoring import MaskIouHead
from codetr.models.ops.roi_pool import pool_indexed, with_image
from codetr.structures import Detections, ImageInfo, Memory, Pyramid
from codetr.tensor_struct import TensorStruct


@dataclass(frozen=True, kw_only=True)
class MaskPredictions(TensorStruct):
    """Of R regions: ``stages``, logits (R, S, S) from coarse to fine; ``iou`` (R,) in [0, 1], how
    well the mask of the stage ``REFINED_FROM`` fits.
    """

    stages: tuple[Tensor, ...]
    iou: Tensor


class MaskBranch(nn.Module):
    """Masks of boxes on the encoder's maps, by ``head``, with scores by ``scoring``.

    ``block``: number of boxes that inference processes at a time, which bounds the memory and does
    not change results.
    """

    def __init__(self, head: RefineMaskHead, scoring: MaskIouHead, block: int = 150) -> None:
        super().__init__()
        self.head, self.scoring, self.block = head, scoring, block

    def predict(
        self, pyramid: Pyramid, boxes: Sequence[Tensor], labels: Tensor, detail: Tensor
    ) -> MaskPredictions:
        """The masks of ``boxes``, per image (R_b, 4) xyxy px of the network's input, of class
        ``labels`` (R,) for all images together; ``detail`` is the head's, of the finest map.
        """
        return self.of_regions(pyramid, with_image(boxes), labels, detail)

    def of_regions(
        self, pyramid: Pyramid, rois: Tensor, labels: Tensor, detail: Tensor
    ) -> MaskPredictions:
        """The same of ``rois`` (R, 5), the number of the image and xyxy px."""
        features = pool_indexed(pyramid, rois, self.head.roi_size)
        stages = self.head(features, labels, detail, rois, 1 / pyramid.strides[0])
        iou = self.scoring(features, stages[REFINED_FROM])
        return MaskPredictions(stages=stages, iou=iou.gather(1, labels[:, None]).squeeze(1))

    def forward(
        self, memory: Memory, found: Sequence[Detections], infos: Sequence[ImageInfo]
    ) -> tuple[Detections, ...]:
        """``found`` in pixels of the original images, with their masks. A mask's score is that of
        its box times its predicted IoU.
        """
        pyramid = memory.pyramid()
        detail = self.head.detail(pyramid.maps[0])
        return tuple(
            replace(one, cells=self._of_image(pyramid, image, one, info.scale, detail))
            for image, (one, info) in enumerate(zip(found, infos, strict=True))
        )

    def _of_image(
        self,
        pyramid: Pyramid,
        image: int,
        found: Detections,
        scale: tuple[float, float],
        detail: Tensor,
    ) -> Masks:
        rows = slice(image, image + 1)
        own = pyramid.map(lambda values: values[rows])
        boxes = found.boxes_xyxy_px * found.boxes_xyxy_px.new_tensor(scale * 2)
        size = self.head.sizes[-1]
        probabilities, ious = [boxes.new_zeros(0, size, size)], [boxes.new_zeros(0)]
        for part, labels in zip(
            boxes.split(self.block), found.labels.split(self.block), strict=True
        ):
            if len(labels):
                predicted = self.predict(own, [part], labels, detail[rows])
                probabilities.append(refined(predicted.stages).sigmoid())
                ious.append(predicted.iou)
        return Masks(probabilities=torch.cat(probabilities), scores=found.scores * torch.cat(ious))
