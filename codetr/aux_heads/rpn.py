"""Region proposal network (Ren et al. 2015), the first stage of the ``rcnn`` head.

Official parameter names (mmdet ``RPNHead``) and ours: ``rpn_conv``, ``rpn_cls``, ``rpn_reg`` are
``conv``, ``cls``, ``reg``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from codetr.assigners.max_iou import MaxIouAssigner
from codetr.assigners.sampling import RandomSampler, Sample
from codetr.aux_heads.anchors import AnchorGrid, Anchors
from codetr.aux_heads.coder import DeltaCoder
from codetr.aux_heads.dense import flatten_level, init_convs
from codetr.aux_heads.matched import boxes_xyxy_px
from codetr.aux_heads.precision import at_least_float32
from codetr.boxes import clip_xyxy
from codetr.structures import Images, Losses, LossTerm, Pyramid, Targets, TensorStruct

GRID = AnchorGrid(scales=tuple(4 * 2 ** (octave / 3) for octave in range(3)), ratios=(0.5, 1, 2))
CODER = DeltaCoder(stds=(1, 1, 1, 1))
ASSIGNER = MaxIouAssigner(positive=0.7, negative=0.3, low_quality=0.3)
SAMPLER = RandomSampler(size=256, positive_share=0.5)


@dataclass(frozen=True, kw_only=True)
class Proposals(TensorStruct):
    """Regions of one image, best first: ``boxes`` (R, 4) xyxy px, ``scores`` (R,)."""

    boxes: Tensor
    scores: Tensor


@dataclass(frozen=True, kw_only=True)
class ProposalSelection:
    """The ``per_level`` best anchors of each level, suppressed within their level above an
    overlap of ``iou``, then the ``limit`` best.
    """

    per_level: int = 1000
    limit: int = 1000
    iou: float = 0.7

    def __call__(self, scores: Tensor, boxes_px: Tensor, level_sizes: tuple[int, ...]) -> Proposals:
        """Proposals from ``scores`` (A,) and decoded, clipped ``boxes_px`` (A, 4) xyxy; boxes
        without area are dropped.
        """
        best, levels, start = [], [], 0
        for number, level in enumerate(scores.split(list(level_sizes))):
            index = level.topk(min(self.per_level, len(level))).indices
            best.append(index + start)
            levels.append(torch.full_like(index, number))
            start += len(level)
        index, level_of = torch.cat(best), torch.cat(levels)
        width, height = (boxes_px[index, 2:] - boxes_px[index, :2]).unbind(dim=1)
        real = (width > 0) & (height > 0)
        index, level_of = index[real], level_of[real]
        kept = batched_nms(boxes_px[index], scores[index], level_of, self.iou)
        index = index[kept[: self.limit]]
        return Proposals(boxes=boxes_px[index], scores=scores[index])


TRAINING = ProposalSelection(per_level=4000)
INFERENCE = ProposalSelection(per_level=1000)


@dataclass(frozen=True, kw_only=True)
class RpnPredictions(TensorStruct):
    """For all A anchors: ``logits`` (B, A) of being an object, ``deltas`` (B, A, 4); at least
    float32.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Anchors


class Rpn(nn.Module):
    """A 3x3 convolution and two 1x1 branches, shared by all levels.

    ``channels`` of the maps; ``training_selection`` and ``inference_selection`` choose the
    proposals for the second stage.
    """

    def __init__(
        self,
        *,
        channels: int,
        cls_weight: float = 1.0,
        bbox_weight: float = 1.0,
        grid: AnchorGrid = GRID,
        coder: DeltaCoder = CODER,
        assigner: MaxIouAssigner = ASSIGNER,
        sampler: RandomSampler = SAMPLER,
        training_selection: ProposalSelection = TRAINING,
        inference_selection: ProposalSelection = INFERENCE,
    ) -> None:
        super().__init__()
        self.cls_weight, self.bbox_weight = cls_weight, bbox_weight
        self.grid, self.coder, self.assigner, self.sampler = grid, coder, assigner, sampler
        self.training_selection = training_selection
        self.inference_selection = inference_selection
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.cls = nn.Conv2d(channels, grid.per_cell, 1)
        self.reg = nn.Conv2d(channels, grid.per_cell * 4, 1)
        init_convs(self)

    def forward(self, pyramid: Pyramid, images: Images) -> RpnPredictions:
        """What the branches say at every anchor."""
        logits, deltas = [], []
        for level in pyramid.maps:
            features = self.conv(level).relu()
            logits.append(flatten_level(self.cls(features), 1).squeeze(2))
            deltas.append(flatten_level(self.reg(features), 4))
        return RpnPredictions(
            logits=at_least_float32(torch.cat(logits, dim=1)),
            deltas=at_least_float32(torch.cat(deltas, dim=1)),
            anchors=self.grid(pyramid, images.padded_sizes),
        )

    def sample(self, anchors: Anchors, image: int, boxes_px: Tensor) -> tuple[Tensor, Sample]:
        """Assignment (A,) of one image to its ``boxes_px`` (N, 4) xyxy, and what to train on."""
        assigned = self.assigner(anchors.boxes, boxes_px, anchors.usable[image])
        return assigned, self.sampler(assigned)

    def losses(self, predictions: RpnPredictions, targets: tuple[Targets, ...]) -> Losses:
        """``rpn_cls`` and ``rpn_bbox``, divided by the number of sampled anchors of this process
        (each kind counts at least 1 per image).
        """
        anchors, count = predictions.anchors, 0
        cls, bbox = [], []
        for image, target in enumerate(targets):
            boxes = boxes_xyxy_px(target.boxes, target)
            assigned, chosen = self.sample(anchors, image, boxes)
            count += max(len(chosen.positive), 1) + max(len(chosen.negative), 1)
            logits, deltas = predictions.logits[image], predictions.deltas[image]
            truth = torch.zeros_like(logits).index_fill(0, chosen.positive, 1)
            cls.append(
                F.binary_cross_entropy_with_logits(
                    logits[chosen.index], truth[chosen.index], reduction="sum"
                )
            )
            wanted = self.coder.encode(
                anchors.boxes[chosen.positive], boxes[assigned[chosen.positive]]
            )
            bbox.append((deltas[chosen.positive] - wanted).abs().sum())
        divisor = count + torch.finfo(predictions.logits.dtype).eps
        return {
            "rpn_cls": LossTerm(torch.stack(cls).sum() / divisor, self.cls_weight),
            "rpn_bbox": LossTerm(torch.stack(bbox).sum() / divisor, self.bbox_weight),
        }

    @torch.no_grad()
    def proposals(
        self, predictions: RpnPredictions, sizes: Tensor, selection: ProposalSelection
    ) -> tuple[Proposals, ...]:
        """Proposals per image, without gradient, clipped to ``sizes`` (B, 2) height, width px.

        Anchors in an image's padding take part, as in the official code.
        """
        boxes = self.coder.decode(predictions.anchors.boxes, predictions.deltas)
        return tuple(
            selection(score, clip_xyxy(box, size.flip(0)), predictions.anchors.level_sizes)
            for score, box, size in zip(predictions.logits.sigmoid(), boxes, sizes, strict=True)
        )
