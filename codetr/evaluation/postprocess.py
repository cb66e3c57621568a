"""From raw predictions to detections in pixels of the original image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from codetr.boxes import cxcywh_to_xyxy
from codetr.errors import UserError
from codetr.nms import SoftNms
from codetr.structures import Detections, ImageInfo, Predictions


class Postprocess:
    """Top-k over (query, class) pairs, rescaling to the original image and optional soft-NMS.

    Returns at most ``max_detections`` per image. With ``nms``, the best ``pre_nms`` pairs enter it
    (None: ``max_detections``). The official repositories differ in these numbers: Sense-X is
    900 -> soft-NMS -> 300, the mmdet 3 port 300 -> soft-NMS.
    Raises UserError where a number is below 1 or ``pre_nms`` is given without ``nms``.
    """

    def __init__(
        self, max_detections: int = 300, pre_nms: int | None = None, nms: SoftNms | None = None
    ) -> None:
        if max_detections < 1:
            raise UserError(
                f"evaluation.postprocess.max_detections={max_detections}: give 1 or more"
            )
        if pre_nms is not None and pre_nms < 1:
            raise UserError(f"evaluation.postprocess.pre_nms={pre_nms}: give 1 or more, or null")
        if pre_nms is not None and nms is None:
            raise UserError(
                f"evaluation.postprocess.pre_nms={pre_nms} has no effect without "
                "evaluation.postprocess.nms: set pre_nms=null, or choose evaluation=soft_nms"
            )
        self.max_detections = max_detections
        self.pre_nms = pre_nms
        self.nms = nms

    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, sizes: Tensor, infos: Sequence[ImageInfo]
    ) -> tuple[Detections, ...]:
        """One ``Detections`` per image of the batch, on the device of the predictions.

        ``sizes`` (B, 2) is ``Images.sizes``, the (height, width) in pixels that predicted boxes
        are relative to and are clamped to; ``infos`` gives each image's scale per axis.
        """
        boxes, scores, labels = self._top(predictions)
        boxes = in_original_pixels(boxes, sizes, infos)
        # Scores of zero (a sigmoid that underflowed) are last and dropped. NaN is kept, so that a
        # broken model is noticed.
        counts = (~(scores <= 0)).sum(dim=1).tolist()
        found = tuple(
            Detections(boxes_xyxy_px=b[:n], scores=s[:n], labels=k[:n])
            for b, s, k, n in zip(boxes, scores, labels, counts, strict=True)
        )
        return found if self.nms is None else self._suppress(found, self.nms)

    def _top(self, predictions: Predictions) -> tuple[Tensor, Tensor, Tensor]:
        """The best k of all (query, class) pairs: boxes (B, k, 4), scores and labels (B, k)."""
        dtype = torch.promote_types(predictions.logits.dtype, torch.float32)
        probability = predictions.scores(dtype).flatten(1)
        most = predictions.classification.most_detections(predictions.logits)
        k = min(self.pre_nms or self.max_detections, most)
        scores, pair = probability.topk(k, dim=1)
        num_classes = predictions.num_classes
        query = pair // num_classes
        boxes = predictions.boxes.to(dtype).gather(1, query[..., None].expand(-1, -1, 4))
        return boxes, scores, pair % num_classes

    def _suppress(self, found: Sequence[Detections], nms: SoftNms) -> tuple[Detections, ...]:
        """The best ``max_detections`` of each image by decayed score."""
        decayed = nms.batch([(one.boxes_xyxy_px, one.scores, one.labels) for one in found])
        return tuple(
            replace(one.take(index), scores=scores).take(slice(self.max_detections))
            for one, (index, scores) in zip(found, decayed, strict=True)
        )


def in_original_pixels(boxes: Tensor, sizes: Tensor, infos: Sequence[ImageInfo]) -> Tensor:
    """Relative cxcywh (B, k, 4) to xyxy pixels of the original images, clamped to them; ``sizes``
    and ``infos`` as for ``Postprocess.__call__``.
    """
    size_whwh = sizes.flip(-1).repeat(1, 2)[:, None].to(boxes)
    corners = torch.minimum((cxcywh_to_xyxy(boxes) * size_whwh).clamp(min=0), size_whwh)
    scale = torch.tensor([info.scale for info in infos], dtype=boxes.dtype)
    return corners / scale.repeat(1, 2)[:, None].to(boxes.device, non_blocking=True)
