"""The interface of a detector for training schemes: three steps, and no training code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from codetr.classification import Classification
from codetr.models.transformers.tables import QueryForm, QueryTable
from codetr.structures import Decoded, Images, Memory, Predictions, Queries, QueryGroup

MAIN = "main"
"""Name of the query group that is used for inference."""


class Detector(Protocol):
    """``forward`` is encode, queries and decode for the main group alone.

    ``num_classes`` K; ``num_layers``: predictions of ``decode`` per query; ``groups``: whether it
    can decode further groups beside the main one; ``form`` of the queries; ``classification``: the
    meaning of class logits; ``taps``: number of taps of ``decode`` by name.
    """

    num_classes: int
    num_layers: int
    groups: bool

    @property
    def form(self) -> QueryForm:
        """Of the main queries."""
        ...

    @property
    def classification(self) -> Classification:
        """Of all predictions."""
        ...

    @property
    def taps(self) -> Mapping[str, int]:
        """Empty where the decoder has none."""
        ...

    def encode(self, images: Images) -> Memory:
        """Backbone, neck and encoder."""
        ...

    def queries(self, memory: Memory, tables: Sequence[QueryTable] = ()) -> tuple[Queries, ...]:
        """The main group's queries, then one group per table: made in the same way and by the same
        selection, but from the learned rows of the table.
        """
        ...

    def decode(self, memory: Memory, groups: Sequence[QueryGroup]) -> Mapping[str, Decoded]:
        """Decode every group; the result of a group depends on no other, except those it sees."""
        ...

    def __call__(self, images: Images) -> Predictions:
        """The last layer's predictions for the main group."""
        ...
