"""One-to-many assignment by the best-ranked predictions of each target (MS-DETR, DETA)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codetr.boxes import cxcywh_to_xyxy, pairwise_iou
from codetr.classification import Sigmoid
from codetr.errors import UserError
from codetr.structures import Assignment, Predictions, Targets


class TopKAssigner(nn.Module):
    """Assigns to each target its best queries, at most ``k``.

    The quality of a query for a target is ``overlap * IoU + score * probability`` of its class. A
    query is positive if its best quality reaches ``threshold``, or if it is the best query of some
    target; it votes for the target of its best quality. A target with n votes is assigned its
    min(n, k) best queries, whatever they voted for: a query may belong to several targets. At most
    the ``share`` of an image's queries votes, at random if more are positive.

    Source: MS-DETR (arXiv 2401.03989), section 3.2; official ``models/matcher_o2m.py``.
    Raises UserError for numbers out of range.
    """

    reads = Sigmoid

    def __init__(
        self,
        k: int = 6,
        threshold: float = 0.4,
        overlap: float = 0.7,
        score: float = 0.3,
        share: float = 0.25,
    ) -> None:
        super().__init__()
        if k < 1 or not 0 < share <= 1:
            raise UserError(
                f"scheme.mixed.assigner has k={k}, share={share}: give k >= 1 and a share in (0, 1]"
            )
        self.k, self.threshold = k, threshold
        self.overlap, self.score, self.share = overlap, score, share

    @torch.no_grad()
    def forward(
        self, layers: Sequence[Predictions], targets: Sequence[Targets]
    ) -> tuple[Assignment, ...]:
        """Assign every layer's predictions (B, Q, ...) by itself, with one copy from the device.

        An image's pairs come by ascending quality.
        """
        assert all(isinstance(layer.classification, Sigmoid) for layer in layers)
        logits = torch.stack([layer.logits for layer in layers])
        boxes = torch.stack([layer.boxes for layer in layers])
        parts, offset = [], 0
        for b, own in enumerate(targets):
            if len(own):
                quality = self.quality(logits[:, b].to(boxes.dtype), boxes[:, b], own)
                query, target, kept = self.pairs(quality)
                image = torch.full_like(query, b)
                parts.append(torch.stack([image, query, target + offset, kept.to(query.dtype)]))
            offset += len(own)
        if not parts:
            none = torch.zeros(0, dtype=torch.int64, device=boxes.device)
            return (Assignment(image=none, query=none, target=none),) * len(layers)
        table = torch.cat(parts, dim=-1).cpu()  # (4, layers, candidates)
        chosen = [rows[:3, rows[3] == 1] for rows in table.unbind(1)]
        packed = torch.cat(chosen, dim=1).to(boxes.device, non_blocking=True)
        cut = packed.split([rows.shape[1] for rows in chosen], dim=1)
        return tuple(Assignment(image=i, query=q, target=t) for i, q, t in cut)

    def quality(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """(..., N, Q) in [0, 1] of predictions (..., Q, K), (..., Q, 4) for one image's targets."""
        size = targets.size_whwh.to(boxes.dtype)
        wanted = cxcywh_to_xyxy(targets.boxes.to(boxes.dtype)) * size
        iou = pairwise_iou(cxcywh_to_xyxy(boxes) * size, wanted)
        probability = logits[..., targets.labels].sigmoid()
        return (self.overlap * iou + self.score * probability).transpose(-2, -1)

    def votes(self, quality: Tensor) -> tuple[Tensor, Tensor]:
        """From (..., N, Q), N > 0: each query's best target (..., Q); whether it is positive."""
        value, best = quality.max(dim=-2)
        rescued = torch.zeros_like(value, dtype=torch.bool)
        rescued = rescued.scatter(-1, quality.argmax(dim=-1), True)
        return best, (value >= self.threshold) | rescued

    def pairs(self, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From (..., N, Q), N > 0: query, target and whether they are a pair, each
        (..., N * min(k, Q)), by ascending quality.
        """
        best, positive = self.votes(quality)
        positive = _at_most(positive, int(self.share * quality.shape[-1]))
        count = torch.zeros(quality.shape[:-1], dtype=torch.int64, device=quality.device)
        count = count.scatter_add(-1, best, positive.to(torch.int64))
        value, query = quality.topk(min(self.k, quality.shape[-1]), dim=-1)
        rank = torch.arange(query.shape[-1], device=quality.device)
        kept = rank < count[..., None]
        target = torch.arange(quality.shape[-2], device=quality.device)[:, None].expand_as(query)
        order = value.flatten(-2).argsort(dim=-1)
        query, target, kept = (x.flatten(-2).gather(-1, order) for x in (query, target, kept))
        return query, target, kept


def _at_most(chosen: Tensor, count: int) -> Tensor:
    """(..., Q) bool: all of ``chosen`` (..., Q), or a random ``count`` of them where it is more."""
    draw = torch.rand(chosen.shape, device=chosen.device).masked_fill(~chosen, -1.0)
    lucky = torch.zeros_like(chosen).scatter(-1, draw.topk(count, dim=-1).indices, True)
    return chosen & lucky


def with_best_target(assignment: Assignment, images: int, queries: int) -> Assignment:
    """The same pairs, but with the target of a query's last pair in all of its pairs: a query has
    one class, which then does not depend on the pair that is written last.

    ``images`` B and ``queries`` Q bound the indices.
    """
    slot = assignment.image * queries + assignment.query
    order = torch.arange(len(assignment), device=slot.device)
    last = torch.zeros(images * queries, dtype=order.dtype, device=slot.device)
    last = last.scatter_reduce(0, slot, order, "amax")
    target = assignment.target[last[slot]]
    return Assignment(image=assignment.image, query=assignment.query, target=target)
