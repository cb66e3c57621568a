"""Region proposal network (Ren et al. 2015), the first stage of the ``rcnn`` head.

Official parameter names (mmdet ``RPNHead``) and ours: ``rpn_conv``, ``rpn_cls``, ``rpn_reg`` are
``conv``, ``cls``, ``reg``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr.loss_terms import Count, Losses, LossTerm
from codetr.structures import Images, Pyramid, Targets
from codetr.supervision.assigners.max_iou import MaxIouAssigner
from codetr.supervision.assigners.sampling import RandomSampler, best_of_levels
from codetr.supervision.aux_heads.anchors import AnchorGrid, Anchors, DeltaCoder
from codetr.supervision.aux_heads.layers import flatten_level, init_convs
from codetr.supervision.aux_heads.matched import true_boxes
from codetr.suppression import surviving
from codetr.tensor_struct import TensorStruct

GRID = AnchorGrid(scales=tuple(4 * 2 ** (octave / 3) for octave in range(3)), ratios=(0.5, 1, 2))
CODER = DeltaCoder(stds=(1, 1, 1, 1))
ASSIGNER = MaxIouAssigner(positive=0.7, negative=0.3, low_quality=0.3)
SAMPLER = RandomSampler(size=256, positive_share=0.5)


@dataclass(frozen=True, kw_only=True)
class RegionProposals(TensorStruct):
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

    def __call__(
        self, scores: Tensor, boxes_px: Tensor, level_sizes: tuple[int, ...]
    ) -> tuple[RegionProposals, ...]:
        """Proposals of every image from ``scores`` (B, A) and decoded, clipped ``boxes_px``
        (B, A, 4) xyxy; boxes without area are dropped.
        """
        index = best_of_levels(scores, level_sizes, self.per_level, dim=1)
        scores = scores.gather(1, index)
        boxes = boxes_px.gather(1, index[..., None].expand(-1, -1, 4))
        best_sizes = [min(self.per_level, size) for size in level_sizes]
        kept = surviving(boxes, scores, best_sizes, self.iou)
        # Boxes without area overlap nothing, so they can be dropped after the suppression.
        kept = kept & (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
        order = scores.masked_fill(~kept, -torch.inf).sort(dim=1, descending=True, stable=True)
        counts = kept.sum(dim=1).clamp(max=self.limit).tolist()
        chosen = [row[:count] for row, count in zip(order.indices, counts, strict=True)]
        return tuple(
            RegionProposals(boxes=box[row], scores=score[row])
            for box, score, row in zip(boxes, scores, chosen, strict=True)
        )


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


@dataclass(frozen=True, kw_only=True)
class RpnSamples:
    """Outputs of the branches for some anchors of every image: ``logits`` (R_b,) and ``deltas``
    (R_b, 4), at least float32.
    """

    logits: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]


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
        """Outputs of the branches for every anchor."""
        logits, deltas = [], []
        for level in pyramid.maps:
            features = self.conv(level).relu()
            logits.append(flatten_level(self.cls(features), 1).squeeze(2))
            deltas.append(flatten_level(self.reg(features), 4))
        return RpnPredictions(
            logits=torch.cat(logits, dim=1),
            deltas=torch.cat(deltas, dim=1),
            anchors=self.grid(pyramid, images.padded_sizes),
        )

    def assign(self, anchors: Anchors, image: int, boxes_px: Tensor) -> Tensor:
        """(A,) which of its ``boxes_px`` (N, 4) xyxy every anchor of one image belongs to."""
        return self.assigner(anchors.boxes, boxes_px, anchors.usable[image])

    def at(self, pyramid: Pyramid, index: Sequence[Tensor]) -> RpnSamples:
        """Outputs of the branches for the anchors ``index`` (R_b,) of every image: equal to those
        of ``forward``, but computed from the 3x3 cells around each anchor only.
        """
        around = _neighbours(pyramid)
        cells = pyramid.tokens()
        cells = torch.cat([cells, torch.zeros_like(cells[:, :1])], dim=1)
        parts = [
            own.index_select(0, around[chosen // self.grid.per_cell].flatten())
            for own, chosen in zip(cells, index, strict=True)
        ]
        windows = torch.cat(parts).unflatten(0, (-1, 3, 3)).permute(0, 3, 1, 2)
        features = F.conv2d(windows, self.conv.weight, self.conv.bias).relu()
        anchor = (torch.cat(list(index)) % self.grid.per_cell)[:, None, None]
        logits = flatten_level(self.cls(features), 1).gather(1, anchor)
        deltas = flatten_level(self.reg(features), 4).gather(1, anchor.expand(-1, -1, 4))
        counts = [len(chosen) for chosen in index]
        return RpnSamples(
            logits=logits.flatten().split(counts), deltas=deltas.squeeze(1).split(counts)
        )

    def losses(self, anchors: Anchors, pyramid: Pyramid, targets: tuple[Targets, ...]) -> Losses:
        """``rpn_cls`` and ``rpn_bbox``, divided by the number of sampled anchors of this process
        (each kind counts at least 1 per image).
        """
        truths = true_boxes(targets)
        assignments = [self.assign(anchors, image, boxes) for image, boxes in enumerate(truths)]
        samples = self.sampler(assignments)
        found = self.at(pyramid, [chosen.index for chosen in samples])
        count, cls, bbox = 0, [], []
        for boxes, assigned, chosen, logits, deltas in zip(
            truths, assignments, samples, found.logits, found.deltas, strict=True
        ):
            positive = chosen.positive
            count += max(len(positive), 1) + max(len(chosen.negative), 1)
            truth = torch.zeros_like(logits)
            truth[: len(positive)] = 1
            cls.append(F.binary_cross_entropy_with_logits(logits, truth, reduction="sum"))
            wanted = self.coder.encode(anchors.boxes[positive], boxes[assigned[positive]])
            bbox.append((deltas[: len(positive)] - wanted).abs().sum())
        sampled = Count.of(count, found.logits[0], shared=False)
        return {
            "rpn_cls": LossTerm(torch.stack(cls).sum(), self.cls_weight, sampled),
            "rpn_bbox": LossTerm(torch.stack(bbox).sum(), self.bbox_weight, sampled),
        }

    @torch.no_grad()
    def proposals(
        self, predictions: RpnPredictions, sizes: Tensor, selection: ProposalSelection
    ) -> tuple[RegionProposals, ...]:
        """Proposals per image, without gradient, clipped to ``sizes`` (B, 2) height, width px.

        Anchors in the padding of an image are included, as in the official code.
        """
        boxes = self.coder.decode(predictions.anchors.boxes, predictions.deltas)
        limits = sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        return selection(predictions.logits.sigmoid(), boxes, predictions.anchors.level_sizes)


def _neighbours(pyramid: Pyramid) -> Tensor:
    """(cells, 9) indices of the 3x3 cells around each cell, row by row; the total number of cells
    marks a neighbour outside the map.
    """
    sizes = [height * width for height, width in pyramid.shapes]
    device = pyramid.maps[0].device
    around, first = [], 0
    for shape, size in zip(pyramid.shapes, sizes, strict=True):
        numbers = torch.arange(first, first + size, device=device).view(shape)
        framed = F.pad(numbers, (1, 1, 1, 1), value=sum(sizes))
        around.append(framed.unfold(0, 3, 1).unfold(1, 3, 1).reshape(size, 9))
        first += size
    return torch.cat(around)
