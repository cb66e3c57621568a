"""Training of the detector's mask branch on its own boxes, as in Co-DETR's instance models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from codetr.boxes import clip_xyxy, cxcywh_to_xyxy
from codetr.loss_terms import Losses, LossTerm
from codetr.models.detectors.protocol import MAIN
from codetr.models.masks import MaskBranch, MaskPredictions
from codetr.models.masks.refine import REFINED_FROM
from codetr.structures import Batch, Decoded, Targets
from codetr.supervision.assigners.max_iou import MaxIouAssigner
from codetr.supervision.assigners.sampling import RandomSampler
from codetr.supervision.aux_heads.matched import Regions, RegionSampler
from codetr.supervision.criteria.refined_masks import (
    iou_loss,
    iou_targets,
    stage_losses,
    visible_shares,
)
from codetr.supervision.mask_targets import mask_targets
from codetr.supervision.schemes.protocol import Proposal, Scheme, Start

DENOISING = "denoising"
ASSIGNER = MaxIouAssigner(positive=0.5, negative=0.5)
SAMPLER = RandomSampler(size=512, positive_share=0.25)
STAGE_WEIGHTS = (0.5, 0.75, 0.75, 1.0)


class InstanceMasks(Scheme):
    """Trains the mask branch on boxes of the last decoder layer that overlap an object, and on the
    true boxes.

    Args:
        weight: of the masks' loss.
        iou_weight: of their scores' loss.
        lambda_2: times the number of decoder layers, a factor of both: the official code weights
            all losses but the query head's in this way.
        max_boxes: number of best (query, class) pairs of each image that are candidates; with the
            denoising queries among them, as in the official code.
        stage_weights: of the stages' losses, from coarse to fine.
    """

    trains_masks = True

    def __init__(
        self,
        weight: float = 1.0,
        iou_weight: float = 0.5,
        lambda_2: float = 2.0,
        max_boxes: int = 1000,
        stage_weights: Sequence[float] = STAGE_WEIGHTS,
        assigner: MaxIouAssigner = ASSIGNER,
        sampler: RandomSampler = SAMPLER,
    ) -> None:
        super().__init__()
        self.weight, self.iou_weight, self.lambda_2 = weight, iou_weight, lambda_2
        self.max_boxes, self.stage_weights = max_boxes, tuple(stage_weights)
        self.assigner, self.sampler = assigner, sampler

    def propose(self, start: Start) -> Proposal:
        """Losses ``mask`` and ``mask_iou``, once there are boxes."""
        return Proposal(after=partial(self._losses, start))

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Losses:
        """None: see ``propose``."""
        return {}

    def _losses(self, start: Start, decoded: Mapping[str, Decoded]) -> Losses:
        branch: MaskBranch = start.detector.mask_branch  # type: ignore[attr-defined]
        targets = start.batch.targets
        regions = self.regions(decoded, targets, start.detector.num_classes)
        pyramid = start.memory.pyramid()
        boxes = [r.positive_boxes for r in regions]
        labels = torch.cat([r.positive_labels for r in regions])
        detail = branch.head.detail(pyramid.maps[0])
        predicted = branch.predict(pyramid, boxes, labels, detail)
        return self.losses(predicted, regions, targets, self.lambda_2 * start.detector.num_layers)

    def losses(
        self,
        predicted: MaskPredictions,
        regions: Sequence[Regions],
        targets: Sequence[Targets],
        factor: float,
    ) -> Losses:
        """Losses of the masks of positive ``regions``, with ``factor`` times their weights."""
        boxes = [r.positive_boxes for r in regions]
        numbers = [r.target for r in regions]
        sizes = [logits.shape[-1] for logits in predicted.stages]
        bitmaps = mask_targets(targets, boxes, numbers, sizes)
        truth = [one.to(logits) for one, logits in zip(bitmaps, predicted.stages, strict=True)]
        stages = stage_losses(predicted.stages, truth)
        weighted = [w * loss for w, loss in zip(self.stage_weights, stages, strict=True)]
        coarse = predicted.stages[REFINED_FROM]
        visible = visible_shares(targets, boxes, numbers).to(coarse)
        wanted = iou_targets(coarse, truth[REFINED_FROM], visible)
        return {
            "mask": LossTerm(torch.stack(weighted).sum(), factor * self.weight),
            "mask_iou": LossTerm(iou_loss(predicted.iou, wanted), factor * self.iou_weight),
        }

    def regions(
        self, decoded: Mapping[str, Decoded], targets: Sequence[Targets], num_classes: int
    ) -> tuple[Regions, ...]:
        """The sampled boxes of every image, the true ones first."""
        sampled = RegionSampler(
            assigner=self.assigner, sampler=self.sampler, num_classes=num_classes
        )
        return sampled(self._best_boxes(decoded, targets), targets)

    def _best_boxes(
        self, decoded: Mapping[str, Decoded], targets: Sequence[Targets]
    ) -> list[Tensor]:
        """Per image (M, 4) xyxy px: the boxes of the best pairs of query and class of the last
        layer, clipped to the image. One box may be there several times.
        """
        last = [decoded[name].layers[-1] for name in (DENOISING, MAIN) if name in decoded]
        dtype = torch.promote_types(last[0].logits.dtype, torch.float32)
        scores = torch.cat([one.scores(dtype).detach() for one in last], dim=1)
        boxes = torch.cat([one.boxes.detach() for one in last], dim=1)
        pair = scores.flatten(1).topk(min(self.max_boxes, scores[0].numel()), dim=1).indices
        query = torch.div(pair, scores.shape[-1], rounding_mode="floor")
        chosen = boxes.gather(1, query[..., None].expand(-1, -1, 4))
        return [
            clip_xyxy(cxcywh_to_xyxy(own * target.size_whwh), target.size)
            for own, target in zip(chosen, targets, strict=True)
        ]
