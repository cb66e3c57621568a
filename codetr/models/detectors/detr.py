"""DETR-like detectors, by composition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from codetr.classification import Classification
from codetr.models.backbones import Backbone
from codetr.models.detectors.grouping import additive, attention_mask, joined, separable, split
from codetr.models.detectors.protocol import MAIN
from codetr.models.heads import Head
from codetr.models.masks import MaskBranch
from codetr.models.necks import Neck
from codetr.models.transformers import Decoder, Encoder, QueryForm, QueryInit, QueryTable
from codetr.structures import (
    Decoded,
    Images,
    Memory,
    Predictions,
    Queries,
    QueryGroup,
)


class Detr(nn.Module):
    """Backbone, neck, encoder, query initialisation, decoder and head: no training inside.

    ``neck`` builds the neck from the backbone's channels and strides. ``mask_branch`` predicts the
    masks of the boxes, if given; boxes do not depend on it. With ``one_pass`` all query groups are
    decoded in one call, under an attention mask; without, groups that do not see each other are
    decoded one after the other, with the same results in less memory.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Callable[[tuple[int, ...], tuple[int, ...]], Neck],
        encoder: Encoder,
        query_init: QueryInit,
        decoder: Decoder,
        head: Head,
        one_pass: bool = True,
        mask_branch: MaskBranch | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck(backbone.channels, backbone.strides)
        self.encoder = encoder
        self.query_init = query_init
        self.decoder = decoder
        self.head = head
        self.one_pass = one_pass
        self.mask_branch = mask_branch
        if head.num_layers != decoder.num_layers:
            raise ValueError(
                f"the head is made for {head.num_layers} decoder layers but there are "
                f"{decoder.num_layers}: set both to the same number"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.head.num_classes

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self.head.num_layers

    @property
    def classification(self) -> Classification:
        """The meaning of class logits."""
        return self.head.classification

    @property
    def form(self) -> QueryForm:
        """The form of the queries."""
        return self.query_init.form

    @property
    def groups(self) -> bool:
        """Whether further query groups can be decoded beside the main one."""
        return self.decoder.groups

    @property
    def taps(self) -> Mapping[str, int]:
        """Number of taps of the decoder by name."""
        return self.decoder.taps

    def encode(self, images: Images) -> Memory:
        """Backbone, neck and encoder."""
        pyramid = self.neck(self.backbone(images.pixels, images.padding))
        return self.encoder(pyramid, images.padding)

    def queries(self, memory: Memory, tables: Sequence[QueryTable] = ()) -> tuple[Queries, ...]:
        """The main group's queries, then those of each table, from one ranking of the memory."""
        return self.query_init(memory, self.head, tables)

    def decode(self, memory: Memory, groups: Sequence[QueryGroup]) -> Mapping[str, Decoded]:
        """Predictions of every layer for every group, by the group's name."""
        decoded: dict[str, Decoded] = {}
        for together in [list(groups)] if self.one_pass else separable(groups):
            queries = joined(together)
            mask = additive(attention_mask(together), queries.content)
            output = self.decoder(queries, memory, self.head, mask)
            decoded |= split(together, output.layers, output.taps)
        return decoded

    def forward(self, images: Images) -> Predictions:
        """The last layer's predictions of the main queries."""
        return self.predict(self.encode(images))

    def predict(self, memory: Memory) -> Predictions:
        """The second half of ``forward``, for callers that use the memory for other outputs too."""
        (main,) = self.queries(memory)
        group = QueryGroup(name=MAIN, queries=main)
        return self.decode(memory, [group])[MAIN].layers[-1]
