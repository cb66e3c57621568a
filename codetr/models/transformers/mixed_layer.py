"""The decoder layer of MS-DETR: cross-attention first."""

from __future__ import annotations

from torch import Tensor

from codetr.models.transformers.decoder import DeformableDecoderLayer
from codetr.models.transformers.refinement import LayerOutput
from codetr.structures import Memory


class CrossFirstDecoderLayer(DeformableDecoderLayer):
    """The parts of ``DeformableDecoderLayer`` in the order cross-attention, self-attention,
    feed-forward block.

    What leaves the cross-attention has not seen the other queries of this layer, which compete
    for targets: that is what several queries per target are supervised on.
    Source: MS-DETR (arXiv 2401.03989), section 3.3; official ``models/deformable_transformer.py``
    with ``use_ms_detr``.
    """

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        references: Tensor,
        memory: Memory,
        mask: Tensor | None,
    ) -> LayerOutput:
        """As ``DeformableDecoderLayer``."""
        attended = self.attend(content, position, references, memory)
        x = self.self_attention_norm(self.self_attention(attended, position, mask))
        return LayerOutput(self.feed_forward_norm(self.feed_forward(x)), attended)
