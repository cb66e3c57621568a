"""Query initialisation from tokens that passed through the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codetr.errors import UserError
from codetr.models.heads.protocol import Head
from codetr.models.transformers.tables import QueryForm, QueryTable
from codetr.structures import DetectionTokens, Memory, Queries


def detection_tokens(memory: Memory) -> DetectionTokens:
    """The detection tokens of ``memory``. Raises UserError if the backbone has none."""
    if memory.detection is None:
        raise UserError(
            "these queries are the backbone's detection tokens, but it has none: choose a backbone "
            "that has, or another model"
        )
    return memory.detection


class TokenQueries(nn.Module):
    """The backbone's detection tokens as they are (YOLOS, arXiv 2106.00666).

    All anchors are the centre of the image, whose logit is 0, so that the head predicts boxes in
    absolute coordinates.
    """

    form = QueryForm(boxes=False)

    def forward(
        self, memory: Memory, head: Head, tables: Sequence[QueryTable] = ()
    ) -> tuple[Queries, ...]:
        """The main queries, with anchors (B, Q, 2). ``head`` is not used. Raises UserError where
        there are ``tables``: only tokens that passed through the backbone know the image.
        """
        if tables:
            raise UserError("these queries come from the backbone: there can be no further ones")
        content = detection_tokens(memory).content
        anchors = torch.full_like(content[..., :2], 0.5, dtype=memory.valid_ratios.dtype)
        return (Queries(content=content, anchors=anchors),)


class TokenProjection(nn.Sequential):
    """Linear layer and group norm, whose statistics are over the channels of a group and *all*
    tokens of an image: (B, Q, C_in) to (B, Q, C).
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__(nn.Linear(width, dim), nn.GroupNorm(32, dim))
        nn.init.xavier_uniform_(self[0].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self[0].bias)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        """Project all tokens of an image together."""
        linear, norm = self
        return norm(linear(tokens).transpose(1, 2)).transpose(1, 2)


class ProjectedTokenQueries(nn.Module):
    """The backbone's detection tokens and their positions, projected to the decoder's width; the
    anchors are points predicted from the position (ViDT, arXiv 2110.03921).

    ``width`` and ``position_width`` are those of the tokens and of their positions.
    """

    form = QueryForm(boxes=False, position=True, rows=("content", "position"))

    def __init__(self, width: int, position_width: int = 256, dim: int = 256) -> None:
        super().__init__()
        self.content = TokenProjection(width, dim)
        self.position = TokenProjection(position_width, dim)
        self.reference_points = nn.Linear(dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(
        self, memory: Memory, head: Head, tables: Sequence[QueryTable] = ()
    ) -> tuple[Queries, ...]:
        """The main queries, and those of each table, whose rows are content and position as they
        are. Anchors (B, Q, 2) are centres in [0, 1], with gradient. ``head`` is not used.
        """
        tokens = detection_tokens(memory)
        assert tokens.position is not None
        content, (position,) = self.content(tokens.content), self.position(tokens.position[None])
        groups = [(content, position)]
        for table in tables:
            assert table.content is not None
            assert table.position is not None
            groups.append((table.content, table.position))
        return tuple(self._queries(memory, content, position) for content, position in groups)

    def _queries(self, memory: Memory, content: Tensor, position: Tensor) -> Queries:
        """From content (B, Q, C) or (Q, C) and position (Q, C)."""
        points = self.reference_points(position).sigmoid().to(memory.valid_ratios.dtype)
        images = memory.tokens.shape[0]  # len() would fix it in an exported program
        return Queries(
            content=content.expand(images, -1, -1),
            anchors=points.expand(images, -1, -1),
            position=position.expand(images, -1, -1),
        )
