"""Query initialisation without proposals: everything is learned (Deformable DETR, one stage)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codetr.models.heads.protocol import Head
from codetr.models.transformers.tables import QueryForm, QueryTable
from codetr.structures import Memory, Queries


class LearnedQueries(nn.Module):
    """Learned content and position; the anchors are points read off the position.

    Source: Deformable DETR (arXiv 2010.04159), section 4; mmdet ``DeformableDetrTransformer``
    with ``as_two_stage=False``.
    """

    form = QueryForm(boxes=False, position=True, rows=("content", "position"))

    def __init__(self, num_queries: int, dim: int = 256) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(num_queries, dim))
        self.content = nn.Parameter(torch.randn(num_queries, dim))
        self.reference_points = nn.Linear(dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(
        self, memory: Memory, head: Head, tables: Sequence[QueryTable] = ()
    ) -> tuple[Queries, ...]:
        """The main queries, then those of each table: the same for every image, with anchors
        (B, Q, 2): centres in [0, 1], with gradient. ``head`` is not used.
        """
        groups = [(self.content, self.position)]
        for table in tables:
            assert table.content is not None
            assert table.position is not None
            groups.append((table.content, table.position))
        return tuple(self._queries(memory, content, position) for content, position in groups)

    def _queries(self, memory: Memory, content: Tensor, position: Tensor) -> Queries:
        images = memory.tokens.shape[0]  # len() would fix it in an exported program
        points = self.reference_points(position).sigmoid().to(memory.valid_ratios.dtype)
        return Queries(
            content=content.expand(images, -1, -1),
            anchors=points.expand(images, -1, -1),
            position=position.expand(images, -1, -1),
        )
