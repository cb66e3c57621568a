"""Query initialisation: where the decoder's main queries come from.

Two-stage selection (Deformable DETR, appendix A.4): every memory token proposes a box, and the
best ones become anchors. Mixed selection (DINO, section 3.4): their content is learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from codetr.errors import UserError
from codetr.models.heads.detection import DetectionHead
from codetr.models.layers import sine_coordinates
from codetr.models.transformers.tables import QueryTable, first_rows
from codetr.structures import Memory, Proposals, Queries, RawPredictions

TEMPERATURE = 10000.0


def grid_proposals(memory: Memory) -> tuple[Tensor, Tensor]:
    """One square per token: logits (B, S, 4) of its cxcywh, +inf where it is not usable, and
    ``usable`` (B, S): inside the image, and each coordinate in (0.01, 0.99).

    Side 0.05 on the finest level, twice that on each further one.
    """
    dtype = memory.valid_ratios.dtype
    levels = memory.padding.split([h * w for h, w in memory.shapes], dim=1)
    boxes = []
    for level, (padding, (height, width)) in enumerate(zip(levels, memory.shapes, strict=True)):
        options: dict[str, Any] = {"dtype": dtype, "device": padding.device}
        valid = ~padding.unflatten(1, (height, width))
        valid_size = torch.stack([valid[:, 0].sum(1), valid[:, :, 0].sum(1)], -1).to(dtype)
        y, x = torch.meshgrid(
            torch.arange(height, **options), torch.arange(width, **options), indexing="ij"
        )
        grid = torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5
        centres = grid / valid_size[:, None]
        boxes.append(torch.cat([centres, torch.full_like(centres, 0.05 * 2.0**level)], dim=-1))
    proposals = torch.cat(boxes, dim=1)
    usable = ((proposals > 0.01) & (proposals < 0.99)).all(-1) & ~memory.padding
    logits = torch.log(proposals / (1 - proposals))
    return logits.masked_fill(~usable[..., None], math.inf), usable


class ProposalStage(nn.Module):
    """The encoder's own detector: class logits and boxes of every token, and the best of them.

    ``rank_by`` says what the selection sorts: the best class (``any_class``, DINO) or class 0
    alone (``objectness``, Deformable DETR).
    """

    def __init__(
        self,
        num_queries: int,
        dim: int = 256,
        rank_by: Literal["any_class", "objectness"] = "any_class",
    ) -> None:
        super().__init__()
        self.num_queries, self.rank_by = num_queries, rank_by
        self.project = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.project.weight)

    def forward(self, memory: Memory, head: DetectionHead) -> tuple[RawPredictions, Tensor]:
        """(all proposals (B, S, ...), indices (B, Q) of the best ones)."""
        anchors, tokens = _usable_tokens(memory)
        proposals = self._predict(tokens, anchors, head)
        return proposals, self.select(proposals.logits)

    def best(self, memory: Memory, head: DetectionHead) -> RawPredictions:
        """The best proposals alone (B, Q, ...), best first.

        Their gradients are those of ``forward``'s. All tokens are ranked, but only the chosen ones
        have boxes and a graph: what the backward pass would find zeros for is left out.
        """
        return self._chosen(memory, head, self.select)

    def select(self, logits: Tensor) -> Tensor:
        """(B, Q) indices of the best tokens, best first; all of them if there are fewer."""
        return self._best(logits, self.num_queries)

    def further_anchors(
        self, memory: Memory, head: DetectionHead, tables: Sequence[QueryTable]
    ) -> tuple[Tensor, ...]:
        """Per table (B, Q, 4) cxcywh, detached: the proposals of the ranks that it asks for, fewer
        where there are fewer tokens.

        Ranks are those of one joint selection. Tokens are ranked once more than for the main
        queries, since schemes are not handed what those were selected from.
        """
        count = max(t.skip + t.num_queries for t in tables)
        found = self._chosen(memory, head, partial(self._best, count=count))
        boxes = found.box_logits.detach().sigmoid()
        return tuple(boxes[:, t.skip : t.skip + t.num_queries] for t in tables)

    def _chosen(
        self, memory: Memory, head: DetectionHead, choose: Callable[[Tensor], Tensor]
    ) -> RawPredictions:
        """The proposals of the tokens whose indices (B, Q) ``choose`` finds in class logits."""
        anchors, tokens = _usable_tokens(memory)
        chosen = choose(self._rank(tokens, head))
        return self._predict(_gather(tokens, chosen), _gather(anchors, chosen), head)

    def _rank(self, tokens: Tensor, head: DetectionHead) -> Tensor:
        """Class logits (B, S, K) to select by. Not by ``no_grad``: autocast would keep the cast
        weights without a graph for the rest of the step.
        """
        found: Tensor = head.proposals.classify(self._hidden(tokens.detach()))
        return found.detach()

    def _predict(self, tokens: Tensor, anchors: Tensor, head: DetectionHead) -> RawPredictions:
        return head.proposals.raw(self._hidden(tokens), anchors)

    def _hidden(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.norm(self.project(tokens))
        return hidden

    def _best(self, logits: Tensor, count: int) -> Tensor:
        scores = logits.amax(-1) if self.rank_by == "any_class" else logits[..., 0]
        tokens = scores.shape[1]
        # Not min(): torch.export would carry that as an unknown through all that follows.
        return scores.topk(count if count <= tokens else tokens, dim=1).indices


def _usable_tokens(memory: Memory) -> tuple[Tensor, Tensor]:
    """(anchors (B, S, 4) as logits, tokens (B, S, C)); tokens that cannot be anchors are zero."""
    anchors, usable = grid_proposals(memory)
    return anchors, memory.tokens.masked_fill(~usable[..., None], 0.0)


def _gather(values: Tensor, indices: Tensor) -> Tensor:
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))


class MixedQueries(nn.Module):
    """Anchors from the best proposals, content learned, position left to the decoder (DINO).

    The selected proposals are handed on for the encoder's loss.
    """

    def __init__(self, stage: ProposalStage, dim: int = 256) -> None:
        super().__init__()
        self.stage = stage
        self.content = nn.Parameter(torch.randn(stage.num_queries, dim))

    def forward(self, memory: Memory, head: DetectionHead) -> Queries:
        """Row i of the content goes with the i-th best proposal."""
        best = self.stage.best(memory, head).predictions()
        content = first_rows(self.content, best.boxes.shape[1], best.boxes.shape[0])
        return Queries(content=content, anchors=best.boxes.detach(), proposals=best)

    def further(
        self, memory: Memory, head: DetectionHead, tables: Sequence[QueryTable]
    ) -> tuple[Queries, ...]:
        """The queries of each table. Raises UserError for one without learned content."""
        made = []
        anchors = self.stage.further_anchors(memory, head, tables)
        for table, boxes in zip(tables, anchors, strict=True):
            if table.content is None:
                raise UserError(
                    "these queries learn their content: set "
                    "model.transformer.per_query.content=true"
                )
            content = first_rows(table.content, boxes.shape[1], boxes.shape[0])
            made.append(Queries(content=content, anchors=boxes))
        return tuple(made)


class PositionedQueries(nn.Module):
    """Anchors from the best proposals and a position embedded from them once (Deformable DETR).

    The content is learned (``mixed``, Deformable-DETR++ and Co-Deformable-DETR) or the other half
    of the same embedding. All proposals are handed on for the encoder's loss.
    """

    def __init__(self, stage: ProposalStage, dim: int = 256, mixed: bool = True) -> None:
        super().__init__()
        self.stage = stage
        self.content = nn.Parameter(torch.randn(stage.num_queries, dim)) if mixed else None
        self.position = nn.Linear(2 * dim, 2 * dim)
        self.position_norm = nn.LayerNorm(2 * dim)
        nn.init.xavier_uniform_(self.position.weight)

    def forward(self, memory: Memory, head: DetectionHead) -> Queries:
        """Row i of the content goes with the i-th best proposal."""
        proposals, chosen = self.stage(memory, head)
        anchors = _gather(proposals.box_logits, chosen).detach().sigmoid()
        content, position = self._embed(anchors, self.content)
        return Queries(
            content=content,
            anchors=anchors,
            position=position,
            proposals=Proposals(
                logits=proposals.logits,
                boxes=proposals.box_logits.sigmoid(),
                anchors=grid_proposals(memory)[0].sigmoid(),
            ),
        )

    def further(
        self, memory: Memory, head: DetectionHead, tables: Sequence[QueryTable]
    ) -> tuple[Queries, ...]:
        """The queries of each table, without proposals."""
        made = []
        anchors = self.stage.further_anchors(memory, head, tables)
        for table, boxes in zip(tables, anchors, strict=True):
            content, position = self._embed(boxes, table.content)
            made.append(Queries(content=content, anchors=boxes, position=position))
        return tuple(made)

    def _embed(self, anchors: Tensor, learned: Tensor | None) -> tuple[Tensor, Tensor]:
        """Content and position (B, Q, C) each, content from ``learned`` (Q, C) where there is."""
        dim = self.position.out_features // 2
        encoding = sine_coordinates(anchors, dim // 2, TEMPERATURE)
        embedded = self.position_norm(self.position(encoding))
        position, content = embedded[..., :dim], embedded[..., dim:]
        if learned is not None:
            content = first_rows(learned, anchors.shape[1], anchors.shape[0])
        return content, position
