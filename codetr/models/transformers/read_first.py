"""Decoders whose head predicts from the initial queries, which the backbone has processed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from codetr.models.heads import Embeddings, Head
from codetr.models.transformers.decoder import DeformableDecoder
from codetr.models.transformers.protocol import DecoderOutput
from codetr.structures import Memory, Queries


class IdentityDecoder(nn.Module):
    """No layers: the head predicts from the queries (YOLOS). Queries that did not pass through the
    backbone would carry no information about the image.
    """

    num_layers, groups = 1, False
    taps: Mapping[str, int] = {}
    layers: tuple[nn.Module, ...] = ()

    def forward(
        self, queries: Queries, memory: Memory, head: Head, mask: Tensor | None
    ) -> DecoderOutput:
        """Predictions of one layer. ``memory`` and ``mask`` are not used."""
        return DecoderOutput(layers=(head.layer(0)(queries.content, queries.anchors),))


class ReadFirstDecoder(nn.Module):
    """The head predicts from the initial queries, and the layers of ``decoder`` refine these boxes
    (ViDT, section 3.2): one set of predictions more than there are layers.
    """

    groups = True

    def __init__(self, decoder: DeformableDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.num_layers = decoder.num_layers + 1

    @property
    def layers(self) -> nn.ModuleList:
        """Those of ``decoder``."""
        return self.decoder.layers

    @property
    def taps(self) -> Mapping[str, int]:
        """Those of ``decoder``."""
        return self.decoder.taps

    def forward(
        self, queries: Queries, memory: Memory, head: Head, mask: Tensor | None
    ) -> DecoderOutput:
        """The output of ``decoder``, preceded by the predictions from the initial queries; taps are
        those of its layers.
        """
        first = head.layer(0)(queries.content, queries.anchors, self.decoder.eps)
        refined = replace(queries, anchors=first.boxes.detach())
        further = self.decoder(refined, memory, _LaterLayers(head), mask)
        return DecoderOutput(layers=(first, *further.layers), taps=further.taps)


@dataclass(frozen=True)
class _LaterLayers:
    """A head without its first layer."""

    head: Head

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    @property
    def num_layers(self) -> int:
        return self.head.num_layers - 1

    @property
    def proposals(self) -> Embeddings:
        return self.head.proposals

    def layer(self, index: int) -> Embeddings:
        return self.head.layer(index + 1)
