"""Learned queries of detectors with dense attention: points, or boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codetr.models.heads.protocol import Head
from codetr.models.layers import Mlp, xavier_matrices
from codetr.models.transformers.tables import QueryForm, QueryTable
from codetr.structures import Memory, Queries


class PointQueries(nn.Module):
    """A learned position, the point predicted from it, and content zero (Conditional DETR, section
    3.2).
    """

    form = QueryForm(boxes=False, position=True, rows=("position",))

    def __init__(self, num_queries: int, dim: int = 256) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(num_queries, dim))
        self.reference_points = Mlp(dim, dim, 2)
        xavier_matrices(self.reference_points)

    def forward(
        self, memory: Memory, head: Head, tables: Sequence[QueryTable] = ()
    ) -> tuple[Queries, ...]:
        """The main queries, then those of each table, with anchors (B, Q, 2): centres in [0, 1],
        with gradient. ``head`` is not used.
        """
        groups = [(self.position, torch.zeros_like(self.position))]
        for table in tables:
            assert table.position is not None
            content = torch.zeros_like(table.position) if table.content is None else table.content
            groups.append((table.position, content))
        return tuple(self._queries(memory, position, content) for position, content in groups)

    def _queries(self, memory: Memory, position: Tensor, content: Tensor) -> Queries:
        images = memory.tokens.shape[0]  # len() would fix it in an exported program
        points = self.reference_points(position).sigmoid().to(memory.valid_ratios.dtype)
        return Queries(
            content=content.expand(images, -1, -1),
            anchors=points.expand(images, -1, -1),
            position=position.expand(images, -1, -1),
        )


class Patterns(nn.Module):
    """``num_patterns`` learned contents, each combined with every anchor (Anchor DETR, DAB-DETR);
    with none, one content of zeros.
    """

    zero: Tensor

    def __init__(self, num_patterns: int = 0, dim: int = 256) -> None:
        super().__init__()
        self.patterns = nn.Parameter(torch.randn(num_patterns, dim)) if num_patterns else None
        self.register_buffer("zero", torch.zeros(1, dim), persistent=False)

    def forward(self) -> Tensor:
        """(P, C) contents, P at least 1."""
        return self.zero if self.patterns is None else self.patterns


class UnknownLabel(nn.Module):
    """The content of queries beside denoising ones that carry a label (DN-DETR, arXiv 2203.01305,
    section 4.4): a learned row that stands for no known label, and a last channel of 0, where
    denoising queries have 1. With ``num_patterns`` it is added to each of them.
    """

    def __init__(self, dim: int = 256, num_patterns: int = 0) -> None:
        super().__init__()
        self.label = nn.Parameter(torch.randn(dim - 1))
        self.patterns = Patterns(num_patterns, dim)

    def forward(self) -> Tensor:
        """(P, C) contents, P at least 1."""
        contents: Tensor = self.patterns()
        return contents + nn.functional.pad(self.label, (0, 1))


class AnchorQueries(nn.Module):
    """Learned boxes (DAB-DETR, section 4.2), each combined with every content (P, C) of the module
    ``content``: P * ``num_queries`` queries, ordered by content.
    """

    form = QueryForm(rows=("anchors",))

    def __init__(self, num_queries: int, content: nn.Module) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.randn(num_queries, 4))  # logits of cxcywh
        self.content = content

    def forward(
        self, memory: Memory, head: Head, tables: Sequence[QueryTable] = ()
    ) -> tuple[Queries, ...]:
        """The main queries, then those of each table, with anchors (B, Q, 4) in [0, 1], with
        gradient. The content of a table, where it has one, replaces that of the module. ``head`` is
        not used.
        """
        contents = self.content()
        groups = [self._crossed(memory, self.anchors, contents)]
        for table in tables:
            assert table.anchors is not None
            if table.content is None:
                groups.append(self._crossed(memory, table.anchors, contents))
            else:
                groups.append(_queries(memory, table.anchors, table.content))
        return tuple(groups)

    def _crossed(self, memory: Memory, anchors: Tensor, contents: Tensor) -> Queries:
        """All of ``anchors`` (Q, 4) with each of ``contents`` (P, C)."""
        content = contents.repeat_interleave(len(anchors), dim=0)
        return _queries(memory, anchors.repeat(len(contents), 1), content)


def _queries(memory: Memory, anchors: Tensor, content: Tensor) -> Queries:
    """The same for every image: ``anchors`` (Q, 4) logits, ``content`` (Q, C)."""
    images = memory.tokens.shape[0]
    boxes = anchors.sigmoid().to(memory.valid_ratios.dtype)
    return Queries(content=content.expand(images, -1, -1), anchors=boxes.expand(images, -1, -1))
