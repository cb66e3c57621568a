"""Refinement of anchors from layer to layer, and where gradients go."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from codetr.boxes import logit
from codetr.models.heads import DetectionHead
from codetr.models.layers import sine_coordinates
from codetr.models.transformers import AnchorPosition, DeformableDecoder, DeformableDecoderLayer
from codetr.structures import Memory, Predictions, Queries

DIM, CLASSES, LAYERS, QUERIES = 16, 3, 3, 5
SHAPES = ((3, 4), (2, 2))


def parts(
    anchor_position: bool = True, norm: bool = True, look_forward_twice: bool = True
) -> tuple[DeformableDecoder, DetectionHead]:
    layer = partial(DeformableDecoderLayer, dim=DIM, heads=2, levels=2, points=2, hidden=DIM)
    decoder = DeformableDecoder(
        layer,
        num_layers=LAYERS,
        anchor_position=AnchorPosition(DIM) if anchor_position else None,
        norm=nn.LayerNorm(DIM) if norm else None,
        look_forward_twice=look_forward_twice,
        eps=1e-3,
    ).double()
    head = DetectionHead(CLASSES, DIM, LAYERS).double()
    with torch.no_grad():
        for parameter in (*decoder.parameters(), *head.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return decoder, head


def inputs(position: bool = False) -> tuple[Queries, Memory]:
    count = sum(h * w for h, w in SHAPES)
    memory = Memory(
        tokens=torch.randn(2, count, DIM, dtype=torch.float64),
        padding=torch.zeros(2, count, dtype=torch.bool),
        shapes=SHAPES,
        strides=(8, 16),
        valid_ratios=torch.rand(2, 2, 2, dtype=torch.float64) * 0.3 + 0.7,
    )
    queries = Queries(
        content=torch.randn(2, QUERIES, DIM, dtype=torch.float64),
        anchors=torch.rand(2, QUERIES, 4, dtype=torch.float64) * 0.6 + 0.2,
        position=torch.randn(2, QUERIES, DIM, dtype=torch.float64) if position else None,
    )
    return queries, memory


def by_hand(
    decoder: DeformableDecoder, head: DetectionHead, queries: Queries, memory: Memory
) -> list[Predictions]:
    """The recipe of DINO with look forward twice, layer by layer (no gradients)."""
    content, anchors = queries.content, queries.anchors
    found = []
    for i, layer in enumerate(decoder.layers):
        scale = torch.cat([memory.valid_ratios] * 2, dim=-1)
        references = torch.stack([anchors * scale[:, None, level] for level in (0, 1)], dim=2)
        x, y, w, h = references[:, :, 0].unbind(-1)
        encoded = sine_coordinates(torch.stack([y, x, w, h], dim=-1), DIM // 2, 10000.0)
        position = decoder.anchor_position.mlp(encoded)
        content = layer(content, position, references, memory, None).content
        normed = decoder.norm(content)
        found.append(
            Predictions(
                logits=head.classify[i](normed),
                boxes=(head.regress[i](normed) + logit(anchors, 1e-3)).sigmoid(),
            )
        )
        anchors = (head.regress[i](content) + logit(anchors, 1e-3)).sigmoid()
    return found


def test_layers_follow_the_recipe() -> None:
    decoder, head = parts()
    queries, memory = inputs()
    with torch.no_grad():
        found = decoder(queries, memory, head, None).layers
        expected = by_hand(decoder, head, queries, memory)
    assert len(found) == LAYERS
    for one, other in zip(found, expected, strict=True):
        assert_close(one.logits, other.logits)
        assert_close(one.boxes, other.boxes)


def test_untrained_box_embeddings_leave_the_anchors() -> None:
    decoder, _ = parts()
    queries, memory = inputs()
    untrained = DetectionHead(CLASSES, DIM, LAYERS).double()
    for layer in decoder(queries, memory, untrained, None).layers:
        assert_close(layer.boxes, queries.anchors)


def reached(loss: Tensor, head: DetectionHead) -> list[int]:
    """Of which layers the box embedding gets a gradient from ``loss``."""
    weights = [regress[-1].weight for regress in head.regress]
    grads = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return [i for i, grad in enumerate(grads) if grad is not None and grad.any()]


@pytest.mark.parametrize(("twice", "expected"), [(True, [1, 2]), (False, [2])])
@pytest.mark.parametrize("norm", [True, False])
def test_box_loss_reaches_the_previous_layer_under_look_forward_twice(
    twice: bool, expected: list[int], norm: bool
) -> None:
    """DINO, section 3.5: layer i's box trains the embeddings of layers i and i - 1."""
    decoder, head = parts(norm=norm, look_forward_twice=twice)
    layers = decoder(*inputs(), head, None).layers
    assert reached(layers[2].boxes.sum(), head) == expected
    assert reached(layers[2].logits.sum(), head) == [], "anchors are detached for attention"


def test_look_forward_twice_changes_gradients_and_no_number() -> None:
    decoder, head = parts()
    queries, memory = inputs()
    once = decoder(queries, memory, head, None).layers
    decoder.look_forward_twice = False
    for one, other in zip(once, decoder(queries, memory, head, None).layers, strict=True):
        assert_close(one.boxes, other.boxes)


def test_without_norm_a_layers_box_is_the_next_layers_anchor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Tensor] = []
    forward = DeformableDecoderLayer.forward

    def spy(self: nn.Module, content: Tensor, position: Tensor, references: Tensor, *rest: object):
        seen.append(references)
        return forward(self, content, position, references, *rest)

    monkeypatch.setattr(DeformableDecoderLayer, "forward", spy)
    decoder, head = parts(anchor_position=False, norm=False)
    queries, memory = inputs(position=True)
    layers = decoder(queries, memory, head, None).layers
    scale = torch.cat([memory.valid_ratios] * 2, dim=-1)[:, None]
    anchors = [queries.anchors, *(layer.boxes for layer in layers[:-1])]
    for references, boxes in zip(seen, anchors, strict=True):
        assert_close(references, boxes.detach()[:, :, None] * scale)
        assert not references.requires_grad


def test_queries_without_position_are_an_error_that_names_the_remedy() -> None:
    decoder, head = parts(anchor_position=False)
    with pytest.raises(ValueError, match="anchor_position"):
        decoder(*inputs(), head, None)


def test_blocked_queries_do_not_reach_others() -> None:
    decoder, head = parts()
    queries, memory = inputs()
    allowed = torch.ones(QUERIES, QUERIES, dtype=torch.bool)
    allowed[:3, 3:] = False
    changed = queries.content.clone()
    changed[:, 3:] += 1
    other = Queries(content=changed, anchors=queries.anchors)
    one = decoder(queries, memory, head, allowed).layers[-1].logits
    two = decoder(other, memory, head, allowed).layers[-1].logits
    assert_close(one[:, :3], two[:, :3])
    assert not torch.allclose(one[:, 3:], two[:, 3:])
