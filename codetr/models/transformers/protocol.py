"""Interfaces of the parts of a transformer. Each part is an ``nn.Module``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from codetr.models.heads.protocol import Head
from codetr.models.transformers.tables import QueryForm, QueryTable
from codetr.structures import Memory, Predictions, Pyramid, Queries, Tap


class Encoder(Protocol):
    """From maps to a memory of tokens."""

    def __call__(self, pyramid: Pyramid, padding: Tensor) -> Memory:
        """``pyramid`` of maps (B, C, H_l, W_l); ``padding`` (B, H, W) bool of the images, True =
        no image there.
        """
        ...


class QueryInit(Protocol):
    """Initialises the queries of a decoder, all of one ``form``."""

    form: QueryForm

    def __call__(
        self, memory: Memory, head: Head, tables: Sequence[QueryTable] = ()
    ) -> tuple[Queries, ...]:
        """The main queries, then one group for each of the ``tables``, from its learned rows. Where
        queries are selected from the memory, one ranking serves all of them. A table has the
        rows that ``form`` names.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class DecoderOutput:
    """``layers``: the predictions (B, Q, ...) of every layer, first to last; ``taps`` of
    intermediate results by name, one per layer, if the decoder has any.
    """

    layers: tuple[Predictions, ...]
    taps: Mapping[str, tuple[Tap, ...]] = field(default_factory=dict)


class Decoder(Protocol):
    """From queries to predictions. ``num_layers``: predictions per query; ``groups``: whether it
    can decode other queries than the main ones; ``taps``: number of taps by name.
    """

    num_layers: int
    groups: bool

    @property
    def taps(self) -> Mapping[str, int]:
        """Empty where there are none."""
        ...

    def __call__(
        self, queries: Queries, memory: Memory, head: Head, mask: Tensor | None
    ) -> DecoderOutput:
        """``mask`` (Q, Q) or (B, 1, Q, Q) is added to the scores of attention among queries: 0
        where a query (row) may see another (column), -inf where not; None: all may.
        """
        ...
