"""The order of attention in MS-DETR's decoder layer, and what its tap has seen."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from codetr.models.transformers import CrossFirstDecoderLayer, DeformableDecoderLayer
from codetr.structures import Memory

DIM, QUERIES = 16, 5
SHAPES = ((3, 4), (2, 2))
SIZES = {"dim": DIM, "heads": 2, "levels": 2, "points": 2, "hidden": 24}


def inputs() -> tuple[Tensor, Tensor, Tensor, Memory]:
    count = sum(h * w for h, w in SHAPES)
    memory = Memory(
        tokens=torch.randn(2, count, DIM, dtype=torch.float64),
        padding=torch.zeros(2, count, dtype=torch.bool),
        shapes=SHAPES,
        strides=(8, 16),
        valid_ratios=torch.ones(2, 2, 2, dtype=torch.float64),
    )
    content, position = torch.randn(2, 2, QUERIES, DIM, dtype=torch.float64).unbind(0)
    references = torch.rand(2, QUERIES, 2, 4, dtype=torch.float64) * 0.5 + 0.25
    return content, position, references, memory


def layer(kind: type[DeformableDecoderLayer]) -> DeformableDecoderLayer:
    made = kind(**SIZES).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@torch.no_grad()
def test_cross_attention_comes_first() -> None:
    made = layer(CrossFirstDecoderLayer)
    content, position, references, memory = inputs()
    frame = made.cross_attention.frame(references, memory.shapes)
    x = made.cross_attention(content, position, frame, memory.tokens, memory.padding, memory.shapes)
    attended = made.cross_attention_norm(x)
    x = made.self_attention_norm(made.self_attention(attended, position, None))
    expected = made.feed_forward_norm(made.feed_forward(x))
    found = made(content, position, references, memory, None)
    assert_close(found.content, expected)
    assert_close(found.attended, attended)


@torch.no_grad()
def test_the_usual_order_gives_other_numbers_from_the_same_weights() -> None:
    usual, mixed = layer(DeformableDecoderLayer), layer(CrossFirstDecoderLayer)
    mixed.load_state_dict(usual.state_dict())
    arguments = (*inputs(), None)
    assert not torch.allclose(usual(*arguments).content, mixed(*arguments).content)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "blind"), [(CrossFirstDecoderLayer, True), (DeformableDecoderLayer, False)]
)
def test_the_tap_of_the_mixed_layer_has_not_seen_other_queries(
    kind: type[DeformableDecoderLayer], blind: bool
) -> None:
    made = layer(kind)
    content, position, references, memory = inputs()
    other = content.clone()
    other[:, 3:] += 1.0
    one = made(content, position, references, memory, None)
    two = made(other, position, references, memory, None)
    assert torch.equal(one.attended[:, :3], two.attended[:, :3]) == blind
    assert not torch.allclose(one.content[:, :3], two.content[:, :3])


@torch.no_grad()
def test_blocked_queries_stay_apart() -> None:
    made = layer(CrossFirstDecoderLayer)
    content, position, references, memory = inputs()
    allowed = torch.eye(QUERIES, dtype=torch.bool)
    other = content.clone()
    other[:, 3:] += 1.0
    one = made(content, position, references, memory, allowed).content
    two = made(other, position, references, memory, allowed).content
    assert_close(one[:, :3], two[:, :3])
