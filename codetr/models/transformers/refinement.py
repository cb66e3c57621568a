"""The loop over decoder layers: each predicts, and may refine the anchors of the next one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from codetr.models.heads import Embeddings, Head
from codetr.models.transformers.protocol import DecoderOutput
from codetr.structures import CROSS_ATTENTION, Predictions, Queries, Tap


class LayerOutput(NamedTuple):
    """``content`` (B, Q, C) for the heads and the next layer; ``attended`` (B, Q, C), the output of
    the cross-attention.
    """

    content: Tensor
    attended: Tensor


Step = Callable[[int, Tensor, Tensor], LayerOutput]
"""From layer number, content (B, Q, C) and anchors (B, Q, 4 or 2) to the layer's output."""


def decode(
    step: Step,
    queries: Queries,
    head: Head,
    norm: nn.Module | None,
    eps: float,
    refine: bool,
    look_forward_twice: bool,
) -> DecoderOutput:
    """Every layer's predictions of ``queries``, and its tap ``CROSS_ATTENTION``.

    ``norm``, if any, is applied to a layer's output before the heads read it, but anchors are
    refined from the output before it (DAB-DETR, DINO). ``look_forward_twice`` lets a layer's box
    loss reach the previous layer through the refined anchors (DINO, section 3.5). Without
    ``refine`` every layer predicts relative to the first anchors (Deformable DETR). ``eps`` clamps
    the inverse sigmoid of anchors.
    """
    content = queries.content
    anchors = queries.anchors  # for attention
    basis = anchors  # for the head to refine: with gradient under look forward twice
    predictions, taps = [], []
    for i in range(head.num_layers):
        content, attended = step(i, content, anchors)
        embeddings = head.layer(i)
        read = partial(_predict, embeddings, norm, eps)
        predictions.append(read(content, basis))
        taps.append(Tap(hidden=attended, anchors=basis, read=read))
        if refine:
            refined = embeddings.boxes(content, anchors, eps)
            anchors = refined.detach()
            basis = refined if look_forward_twice else anchors
    return DecoderOutput(layers=tuple(predictions), taps={CROSS_ATTENTION: tuple(taps)})


def _predict(
    embeddings: Embeddings, norm: nn.Module | None, eps: float, hidden: Tensor, anchors: Tensor
) -> Predictions:
    normed = hidden if norm is None else norm(hidden)
    return embeddings(normed, anchors, eps)
