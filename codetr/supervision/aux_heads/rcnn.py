"""Faster R-CNN (Ren et al. 2015) as an auxiliary head: proposals, then regions.

Official parameter names (mmdet) and ours: ``rpn_head.*`` is ``rpn.*``, ``roi_head.*.bbox_head.*``
is ``box_head.*`` and ``roi_head.*.mask_head.*`` is ``mask_head.*``; see ``rpn`` and ``roi_heads``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr.boxes import at_least_float32, clip_xyxy, paired_giou
from codetr.loss_terms import Count, Losses, LossTerm
from codetr.masks import Masks
from codetr.models.ops.roi_pool import pool_rois
from codetr.nms import ClasswiseNms
from codetr.structures import Batch, Candidates, Detections, Images, Pyramid, Targets
from codetr.supervision.assigners.max_iou import MaxIouAssigner
from codetr.supervision.assigners.sampling import RandomSampler
from codetr.supervision.aux_heads import AuxOutput
from codetr.supervision.aux_heads.anchors import DeltaCoder
from codetr.supervision.aux_heads.matched import Regions, RegionSampler, boxes_xyxy_px, candidates
from codetr.supervision.aux_heads.roi_heads import BoxHead, FcnMaskHead, SharedFcBoxHead
from codetr.supervision.aux_heads.rpn import Rpn
from codetr.supervision.aux_heads.selection import top_pairs
from codetr.supervision.mask_targets import mask_targets

CODER = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2))
ASSIGNER = MaxIouAssigner(positive=0.5, negative=0.5)
SAMPLER = RandomSampler(size=512, positive_share=0.25)
NMS = ClasswiseNms(iou=0.5)
MAX_CANDIDATES = 2000


class RcnnHead(nn.Module):
    """Region proposals from all levels, region features from all but the last (the extra one).

    ``channels`` of the maps, ``num_levels`` of the pyramid; ``rpn`` and ``box_head`` are built as
    in Co-DETR where they are not given. With a ``mask_head`` it is Mask R-CNN (He et al. 2017): the
    positive regions learn the masks of their objects, and detections have masks. ``nms`` is for
    detections of this branch alone.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        num_levels: int,
        rpn: Rpn | None = None,
        box_head: BoxHead | None = None,
        mask_head: FcnMaskHead | None = None,
        cls_weight: float = 1.0,
        bbox_weight: float = 10.0,
        coder: DeltaCoder = CODER,
        assigner: MaxIouAssigner = ASSIGNER,
        sampler: RandomSampler = SAMPLER,
        nms: Callable[[Detections], Detections] = NMS,
    ) -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(f"rcnn needs a pyramid of 2 or more levels, got {num_levels}")
        self.num_classes, self.num_levels = num_classes, num_levels
        self.cls_weight, self.bbox_weight = cls_weight, bbox_weight
        self.coder, self.assigner, self.sampler, self.nms = coder, assigner, sampler, nms
        self.rpn = rpn or Rpn(channels=channels)
        self.box_head = box_head or SharedFcBoxHead(num_classes=num_classes, channels=channels)
        self.mask_head = mask_head

    def forward(self, pyramid: Pyramid, batch: Batch) -> AuxOutput:
        """Losses ``rpn_cls``, ``rpn_bbox``, ``cls``, ``bbox``, and ``mask`` with a mask head. The
        candidates are the sampled regions before refinement, cut to the same number per image, that
        of the image with the fewest.
        """
        # Detached, since the loss recomputes the sampled anchors only (``Rpn.at``). Not by
        # ``no_grad``: autocast would cache cast weights without a graph for that loss, too.
        first_stage = self.rpn(pyramid.map(Tensor.detach), batch.images).map(Tensor.detach)
        proposals = self.rpn.proposals(first_stage, batch.images.sizes, self.rpn.training_selection)
        regions = self.sample([p.boxes for p in proposals], batch.targets)
        features = self.pool(pyramid, [r.boxes for r in regions])
        return AuxOutput(
            losses=self.rpn.losses(first_stage.anchors, pyramid, batch.targets)
            | self.losses(*self.classify(features), regions, batch.targets)
            | self.mask_losses(pyramid, regions, batch.targets),
            candidates=_candidates(regions, features.mean(dim=(2, 3)), batch.targets),
        )

    def sample(self, proposals: list[Tensor], targets: tuple[Targets, ...]) -> tuple[Regions, ...]:
        """Assign and sample the true boxes and ``proposals`` (R, 4) xyxy px of every image."""
        sampled = RegionSampler(
            assigner=self.assigner, sampler=self.sampler, num_classes=self.num_classes
        )
        return sampled(proposals, targets)

    def pool(self, pyramid: Pyramid, boxes: list[Tensor], size: int | None = None) -> Tensor:
        """(R, C, size, size) features of all images' ``boxes`` (R_b, 4) xyxy px; None: of the size
        that the box head takes.
        """
        last = self.num_levels - 1
        fine = replace(pyramid, maps=pyramid.maps[:last], strides=pyramid.strides[:last])
        return pool_rois(fine, boxes, size or self.box_head.roi_size)

    def classify(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, K or 1, 4), at least float32."""
        logits, deltas = self.box_head(features)
        return at_least_float32(logits), at_least_float32(deltas)

    def losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        regions: tuple[Regions, ...],
        targets: tuple[Targets, ...],
    ) -> Losses:
        """Both terms are divided by the number of all sampled regions of this process."""
        labels = torch.cat([r.matched.labels for r in regions])
        boxes = torch.cat([r.boxes for r in regions])
        truth = torch.cat(
            [boxes_xyxy_px(r.matched.boxes, t) for r, t in zip(regions, targets, strict=True)]
        )
        positive = labels < self.num_classes
        # The target of a background region is the region itself: finite, and masked below.
        truth = torch.where(positive[:, None], truth, boxes)
        column = labels.clamp(max=deltas.shape[1] - 1)[:, None, None].expand(-1, 1, 4)
        chosen = deltas.gather(1, column).squeeze(1)
        giou = paired_giou(self.coder.decode(boxes, chosen), truth)
        entropy = F.cross_entropy(logits, labels, reduction="sum")
        sampled = Count.of(len(labels), logits, shared=False)
        return {
            "cls": LossTerm(entropy, self.cls_weight, sampled),
            "bbox": LossTerm(((1 - giou) * positive).sum(), self.bbox_weight, sampled),
        }

    def mask_losses(
        self, pyramid: Pyramid, regions: tuple[Regions, ...], targets: tuple[Targets, ...]
    ) -> Losses:
        """``mask``: binary cross-entropy of the map of the object's class, the mean over the cells
        of all positive regions of this process; nothing without a mask head.
        """
        if self.mask_head is None:
            return {}
        boxes = [r.positive_boxes for r in regions]
        features = self.pool(pyramid, boxes, self.mask_head.roi_size)
        labels = torch.cat([r.positive_labels for r in regions])
        logits = at_least_float32(self.mask_head(features, labels))
        numbers = [r.target for r in regions]
        (truth,) = mask_targets(targets, boxes, numbers, [self.mask_head.mask_size])
        entropy = F.binary_cross_entropy_with_logits(logits, truth.to(logits), reduction="sum")
        cells = Count.of(truth.numel(), logits, shared=False)
        return {"mask": LossTerm(entropy, self.mask_head.weight, cells)}

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[Detections, ...]:
        """Detections per image, from the proposals of the first stage."""
        found = self.rpn.proposals(
            self.rpn(pyramid, images), images.sizes, self.rpn.inference_selection
        )
        return self.detect(pyramid, images, [p.boxes for p in found])

    def detect(
        self, pyramid: Pyramid, images: Images, proposals: list[Tensor]
    ) -> tuple[Detections, ...]:
        """Classify and refine given ``proposals``: per image (R_b, 4) xyxy px. Masks are those of
        the refined boxes.
        """
        logits, deltas = self.classify(self.pool(pyramid, proposals))
        counts = [len(p) for p in proposals]
        found = tuple(
            self._detect_image(*parts)
            for parts in zip(
                proposals,
                logits.softmax(dim=1)[:, :-1].split(counts),
                deltas.split(counts),
                images.sizes,
                strict=True,
            )
        )
        return found if self.mask_head is None else self.with_masks(pyramid, found)

    def with_masks(self, pyramid: Pyramid, found: tuple[Detections, ...]) -> tuple[Detections, ...]:
        """``found`` in pixels of the images that the maps are of, with the masks of their classes;
        a mask's score is that of its box. Raises ValueError without a mask head.
        """
        if self.mask_head is None:
            raise ValueError("this head was built without a mask_head")
        features = self.pool(pyramid, [one.boxes_xyxy_px for one in found], self.mask_head.roi_size)
        logits = self.mask_head(features, torch.cat([one.labels for one in found]))
        parts = at_least_float32(logits).sigmoid().split([len(one) for one in found])
        return tuple(
            replace(one, cells=Masks(probabilities=part, scores=one.scores))
            for one, part in zip(found, parts, strict=True)
        )

    def _detect_image(
        self, rois: Tensor, scores: Tensor, deltas: Tensor, size: Tensor
    ) -> Detections:
        boxes = clip_xyxy(self.coder.decode(rois[:, None], deltas), size.flip(0))
        region, label, score = top_pairs(scores, scores.numel(), 0.0)
        column = label.clamp(max=boxes.shape[1] - 1)
        return self.nms(Detections(boxes_xyxy_px=boxes[region, column], scores=score, labels=label))


def _candidates(
    regions: tuple[Regions, ...], features: Tensor, targets: tuple[Targets, ...]
) -> tuple[Candidates, ...]:
    count = min(MAX_CANDIDATES, *(len(r) for r in regions))
    return tuple(
        candidates(r.boxes[:count], r.matched.take(slice(count)), f[:count], t)
        for r, f, t in zip(regions, features.split([len(r) for r in regions]), targets, strict=True)
    )
