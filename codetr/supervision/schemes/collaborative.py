"""Collaborative hybrid assignments (Co-DETR, arXiv 2211.12860).

Auxiliary heads with one-to-many assignment supervise the encoder (section 3.2), and the boxes
that they assigned become positive queries of the decoder (section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from codetr.errors import UserError
from codetr.loss_terms import Losses, prefixed, scaled
from codetr.models.layers import sine_coordinates
from codetr.models.transformers import QueryForm
from codetr.structures import Batch, Candidates, Decoded, Memory, Pyramid, QueryGroup
from codetr.supervision.aux_heads import AuxHead
from codetr.supervision.aux_heads.layers import CoarserLevel
from codetr.supervision.criteria import SetCriterion, by_layer, known
from codetr.supervision.schemes.positives import count_positives, positive_group
from codetr.supervision.schemes.protocol import Proposal, Scheme, Start
from codetr.supervision.schemes.scoring import Score, measured


class CoordinateEmbedding(nn.Module):
    """Content of a positive query from its box alone (Co-DINO); the decoder adds the position.

    It does not depend on ``num_heads``, the number of auxiliary heads.
    """

    form = QueryForm()

    def __init__(self, dim: int = 256, num_heads: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.project = nn.Linear(2 * dim, dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.project.weight)

    def forward(self, anchors: Tensor, features: Tensor) -> tuple[Tensor, None]:
        """``anchors`` (B, Q, 4) cxcywh to content (B, Q, C); ``features`` are not used."""
        return self.norm(self.project(sine_coordinates(anchors, self.dim // 2))), None


class CoordinateFeatureEmbedding(nn.Module):
    """Content and position from the box, and the head's feature added to the content
    (Co-Deformable-DETR, equation 4).

    The official code also adds a learned scalar to every channel of the position, where a vector
    per head was meant; we do too, since published weights contain it. Its initial value is that of
    a row of a table (``num_heads``, 1) by Xavier's rule.
    """

    form = QueryForm(position=True)

    def __init__(self, dim: int = 256, num_heads: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.project = nn.Linear(2 * dim, 2 * dim)
        self.norm = nn.LayerNorm(2 * dim)
        self.project_feature = nn.Linear(dim, dim)
        self.feature_norm = nn.LayerNorm(dim)
        self.head_position = nn.Parameter(torch.empty(1))
        bound = math.sqrt(6 / (num_heads + 1))
        nn.init.uniform_(self.head_position, -bound, bound)
        for projection in (self.project, self.project_feature):
            nn.init.xavier_uniform_(projection.weight)

    def forward(self, anchors: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """``anchors`` (B, Q, 4) cxcywh, ``features`` (B, Q, C) to content and position."""
        encoded = self.norm(self.project(sine_coordinates(anchors, self.dim // 2)))
        position, content = encoded.chunk(2, dim=-1)
        content = content + self.feature_norm(self.project_feature(features))
        return content, position + self.head_position


class Collaborative(Scheme):
    """K auxiliary heads on the encoder's maps, and their positive queries.

    Args:
        heads: the auxiliary heads by name. Without any (K = 0), and where both lambdas are 0, the
            scheme does nothing.
        embedding: builds the query embedding of one of ``num_heads`` heads; its ``form`` is that
            of the positive queries.
        criterion: measures the positive queries, with the main queries' losses.
        dim: width of the encoder's maps.
        lambda_1: weight of the positive queries' losses (equation 6); 0: there are no such queries,
            the heads alone train the encoder (Table 9).
        lambda_2: weight of the heads' own losses, times the number of decoder layers; 0: the heads
            keep their initial values, and only assign positive queries (Table 9).
        max_queries, min_queries: bounds of the number of queries per head and image.
        adapter: builds what turns the encoder's maps into the heads'; None: a ``CoarserLevel``.

    Raises UserError where a lambda is negative.
    """

    def __init__(
        self,
        heads: Mapping[str, AuxHead],
        embedding: Callable[..., nn.Module],
        criterion: SetCriterion,
        dim: int = 256,
        lambda_1: float = 1.0,
        lambda_2: float = 2.0,
        max_queries: int = 300,
        min_queries: int = 9,
        adapter: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if min(lambda_1, lambda_2) < 0:
            raise UserError(
                f"scheme.collaborative has lambda_1={lambda_1}, lambda_2={lambda_2}: give 0 or more"
            )
        heads = heads if lambda_1 or lambda_2 else {}
        self.heads = nn.ModuleDict(dict(heads))  # type: ignore[arg-type]
        self.embeddings = nn.ModuleDict(
            {name: embedding(num_heads=len(heads)) for name in heads if lambda_1}
        )
        self.adds_groups = len(self.embeddings) > 0
        forms: list[Any] = [part.form for part in self.embeddings.values()]
        self.form = replace(forms[0], boxes=None) if forms else None
        self.criterion = criterion
        self.lambda_1, self.lambda_2 = lambda_1, lambda_2
        self.max_queries, self.min_queries = max_queries, min_queries
        if heads:
            self.extra_level = CoarserLevel(dim) if adapter is None else adapter()

    def head(self, name: str) -> AuxHead:
        """One of the heads."""
        return self.heads[name]  # type: ignore[return-value]

    def auxiliary_pyramid(self, memory: Memory) -> Pyramid:
        """The input maps of the heads. In channels-last memory format: tokens are stored in this
        order anyway, and convolutions are fastest in it.
        """
        pyramid = memory.pyramid()
        maps = tuple(m.contiguous(memory_format=torch.channels_last) for m in pyramid.maps)
        found: Pyramid = self.extra_level(replace(pyramid, maps=maps))
        return found

    def propose(self, start: Start) -> Proposal:
        """The heads' losses as ``{head}/...``, and one query group per head; see the lambdas."""
        if not self.heads:
            return Proposal()
        pyramid = self.auxiliary_pyramid(start.memory)
        outputs = {name: self.head(name)(pyramid, start.batch) for name in self.heads}
        factor = self.lambda_2 * start.detector.num_layers
        losses: Losses = {}
        if factor:
            for name, output in outputs.items():
                losses |= prefixed(name, scaled(factor, output.losses))
        idle = () if factor else (self.heads, self.extra_level)
        candidates = {name: outputs[name].candidates for name in self.embeddings}
        return Proposal(groups=self._groups(candidates, start), losses=losses, idle=idle)

    def _groups(
        self, candidates: Mapping[str, tuple[Candidates, ...]], start: Start
    ) -> tuple[QueryGroup, ...]:
        """The positive queries from each head's candidates."""
        if not candidates:
            return ()
        num_classes = start.detector.num_classes
        counts = count_positives(list(candidates.values()), num_classes)
        return tuple(
            positive_group(
                f"positive_{name}",
                own,
                [targets.size for targets in start.batch.targets],
                num_classes,
                self.embeddings[name],
                (self.min_queries, self.max_queries),
                count,
                coordinates=start.main.anchors.shape[-1],
            )
            for (name, own), count in zip(candidates.items(), counts, strict=True)
        )

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Score:
        """The positive queries' losses as ``positive_{head}/layer{i}/...``."""
        names = [f"positive_{name}" for name in self.embeddings]
        groups = yield from measured(*(known(self.criterion, decoded[name]) for name in names))
        losses: Losses = {}
        for name, layers in zip(names, groups, strict=True):
            losses |= prefixed(name, scaled(self.lambda_1, by_layer(layers)))
        return losses
