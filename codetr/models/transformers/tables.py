"""Learned parameters of query groups that exist only in training, and the form of queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codetr.errors import UserError


@dataclass(frozen=True, kw_only=True)
class QueryForm:
    """The form of the queries of a group: whether their anchors are ``boxes`` or points (None: as
    those of the main group), whether they have a ``position``, and which ``rows`` of a
    ``QueryTable``, by their names there, they are made from.

    Groups that are decoded together all have boxes or all have points; where the main group has a
    position, all groups need one.
    """

    boxes: bool | None = True
    position: bool = False
    rows: tuple[str, ...] = ()


class QueryTable(nn.Module):
    """One row per query of an additional group, a parameter of the scheme that trains with it.

    Everything else that makes a query (selection, projections) belongs to the detector and is
    shared with the main group.

    Args:
        num_queries: rows, Q.
        dim: width C.
        content: whether content is learned; False where the detector derives it from the anchors.
        position: whether position is learned; True where the detector selects no anchors.
        anchors: whether boxes are learned, as logits (Q, 4); True where the detector learns them.
        skip: two-stage detectors give row i the proposal of rank ``skip + i``.

    Raises UserError where a number is out of range.
    """

    def __init__(
        self,
        num_queries: int,
        dim: int = 256,
        content: bool = True,
        position: bool = False,
        skip: int = 0,
        anchors: bool = False,
    ) -> None:
        super().__init__()
        if num_queries < 1 or skip < 0:
            raise UserError(
                f"a table of {num_queries} further queries that skips {skip} proposals: give at "
                "least 1 query, and skip 0 or more"
            )
        self.num_queries, self.skip = num_queries, skip
        self.content = nn.Parameter(torch.randn(num_queries, dim)) if content else None
        self.position = nn.Parameter(torch.randn(num_queries, dim)) if position else None
        self.anchors = nn.Parameter(torch.randn(num_queries, 4)) if anchors else None

    def ranked(self, values: Tensor) -> Tensor:
        """The rows of ``values`` (B, R, C), best first, at the table's ranks: (B, Q, C), fewer
        where there are fewer ranks.
        """
        return values[:, self.skip : self.skip + self.num_queries]


def first_rows(learned: Tensor, anchors: Tensor) -> Tensor:
    """The first rows of ``learned`` (R, C), one for each of the ``anchors`` (B, Q, 4), Q <= R, and
    the same for every image: (B, Q, C).
    """
    return learned[: anchors.shape[1]].expand(anchors.shape[0], -1, -1)
