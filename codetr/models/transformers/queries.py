"""Query initialisation from the memory.

Two-stage selection (Deformable DETR, appendix A.4): every memory token proposes a box, and the
best ones become anchors. Mixed selection (DINO, section 3.4): their content is learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from codetr.models.heads.protocol import Head
from codetr.models.layers import sine_coordinates
from codetr.models.transformers.tables import QueryForm, QueryTable, first_rows
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
    """The first stage of a two-stage detector: class logits and boxes of every token, and the best
    of them.

    ``rank_by``: tokens are ranked by their highest class score (``any_class``, DINO) or that of
    class 0 (``objectness``, Deformable DETR).
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

    def forward(
        self, memory: Memory, head: Head, tables: Sequence[QueryTable] = ()
    ) -> tuple[RawPredictions, Tensor]:
        """(all proposals (B, S, ...), indices (B, R) of the best ones, best first): as many as the
        main queries and those of all ``tables`` need.
        """
        anchors, tokens = _usable_tokens(memory)
        proposals = self._predict(tokens, anchors, head)
        return proposals, self.select(proposals.logits, self._reach(tables))

    def best(self, memory: Memory, head: Head, tables: Sequence[QueryTable] = ()) -> RawPredictions:
        """The best proposals alone (B, R, ...), best first.

        Gradients equal those of ``forward``. All tokens are ranked, but boxes and a graph are
        computed for the selected ones only, since all other gradients are zero.
        """
        anchors, tokens = _usable_tokens(memory)
        chosen = self.select(self._rank(tokens, head), self._reach(tables))
        return self._predict(_gather(tokens, chosen), _gather(anchors, chosen), head)

    def select(self, logits: Tensor, count: int) -> Tensor:
        """(B, R) indices of the best ``count`` tokens by their class logits (B, S, K), best first;
        all of them if there are fewer.
        """
        scores = logits.amax(-1) if self.rank_by == "any_class" else logits[..., 0]
        tokens = scores.shape[1]
        # Not min(): torch.export would carry a symbolic minimum through all later shapes.
        return scores.topk(count if count <= tokens else tokens, dim=1).indices

    def _reach(self, tables: Sequence[QueryTable]) -> int:
        """Number of ranks that the queries need."""
        return max([self.num_queries, *(t.skip + t.num_queries for t in tables)])

    def _rank(self, tokens: Tensor, head: Head) -> Tensor:
        """Class logits (B, S, K) for the selection, detached. Not by ``no_grad``: autocast would
        cache the cast weights without a graph for the rest of the step.
        """
        found: Tensor = head.proposals.classify(self._hidden(tokens.detach()))
        return found.detach()

    def _predict(self, tokens: Tensor, anchors: Tensor, head: Head) -> RawPredictions:
        return head.proposals.raw(self._hidden(tokens), anchors)

    def _hidden(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.norm(self.project(tokens))
        return hidden


def _usable_tokens(memory: Memory) -> tuple[Tensor, Tensor]:
    """(anchors (B, S, 4) as logits, tokens (B, S, C)); tokens that cannot be anchors are zero."""
    anchors, usable = grid_proposals(memory)
    return anchors, memory.tokens.masked_fill(~usable[..., None], 0.0)


def _gather(values: Tensor, indices: Tensor) -> Tensor:
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))


class MixedQueries(nn.Module):
    """Anchors from the best proposals, learned content, position left to the decoder (DINO).

    The selected proposals are returned for the encoder's loss.
    """

    form = QueryForm(rows=("content",))

    def __init__(self, stage: ProposalStage, dim: int = 256) -> None:
        super().__init__()
        self.stage = stage
        self.content = nn.Parameter(torch.randn(stage.num_queries, dim))

    def forward(
        self, memory: Memory, head: Head, tables: Sequence[QueryTable] = ()
    ) -> tuple[Queries, ...]:
        """The main queries, then those of each table: row i of a content goes with the i-th best
        proposal, counted from the table's first rank.
        """
        best = self.stage.best(memory, head, tables).predictions()
        anchors = best.boxes.detach()
        selected = best.map(lambda ranked: ranked[:, : self.stage.num_queries])
        main = self._queries(anchors[:, : self.stage.num_queries], self.content)
        return (
            replace(main, proposals=selected),
            *(self._queries(table.ranked(anchors), table.content) for table in tables),
        )

    def _queries(self, anchors: Tensor, learned: Tensor | None) -> Queries:
        assert learned is not None
        return Queries(content=first_rows(learned, anchors), anchors=anchors)


class PositionedQueries(nn.Module):
    """Anchors from the best proposals and a position embedded from them once (Deformable DETR).

    The content is learned (``mixed``, Deformable-DETR++ and Co-Deformable-DETR) or the other half
    of the same embedding. All proposals are returned for the encoder's loss.
    """

    form = QueryForm(position=True)

    def __init__(self, stage: ProposalStage, dim: int = 256, mixed: bool = True) -> None:
        super().__init__()
        self.stage = stage
        self.content = nn.Parameter(torch.randn(stage.num_queries, dim)) if mixed else None
        self.position = nn.Linear(2 * dim, 2 * dim)
        self.position_norm = nn.LayerNorm(2 * dim)
        nn.init.xavier_uniform_(self.position.weight)

    def forward(
        self, memory: Memory, head: Head, tables: Sequence[QueryTable] = ()
    ) -> tuple[Queries, ...]:
        """The main queries, then those of each table, without proposals: row i of a content goes
        with the i-th best proposal, counted from the table's first rank.
        """
        found, chosen = self.stage(memory, head, tables)
        anchors = _gather(found.box_logits, chosen).detach().sigmoid()
        proposals = Proposals(
            logits=found.logits,
            boxes=found.box_logits.sigmoid(),
            classification=found.classification,
            anchors=grid_proposals(memory)[0].sigmoid(),
        )
        main = self._queries(anchors[:, : self.stage.num_queries], self.content)
        return (
            replace(main, proposals=proposals),
            *(self._queries(table.ranked(anchors), table.content) for table in tables),
        )

    def _queries(self, anchors: Tensor, learned: Tensor | None) -> Queries:
        content, position = self._embed(anchors, learned)
        return Queries(content=content, anchors=anchors, position=position)

    def _embed(self, anchors: Tensor, learned: Tensor | None) -> tuple[Tensor, Tensor]:
        """Content and position (B, Q, C) each, content from ``learned`` (Q, C) if given."""
        dim = self.position.out_features // 2
        encoding = sine_coordinates(anchors, dim // 2, TEMPERATURE)
        embedded = self.position_norm(self.position(encoding))
        position, content = embedded[..., :dim], embedded[..., dim:]
        if learned is not None:
            content = first_rows(learned, anchors)
        return content, position
