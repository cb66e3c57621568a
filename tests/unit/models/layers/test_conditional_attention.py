"""Conditional attention against its formula: a score is a content score plus a position score."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.models.layers import ConditionalCrossAttention, ConditionalSelfAttention

DIM, HEADS, QUERIES, TOKENS = 16, 4, 5, 7


def per_head(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).movedim(-2, 1)


def by_scores(scores: Tensor, value: Tensor) -> Tensor:
    """(B, heads, Q, S) scores and (B, S, C) values to (B, Q, C)."""
    return (scores.softmax(-1) @ per_head(value)).movedim(1, -2).flatten(-2)


def inputs(count: int, *sizes: int) -> tuple[Tensor, ...]:
    torch.manual_seed(count)
    return tuple(torch.randn(2, size, DIM, dtype=torch.float64) for size in sizes)


def test_self_attention_adds_projected_positions_to_projected_contents() -> None:
    x, position = inputs(0, QUERIES, QUERIES)
    layer = ConditionalSelfAttention(DIM, HEADS).double()
    query = layer.query_content(x) + layer.query_position(position)
    key = layer.key_content(x) + layer.key_position(position)
    scores = per_head(query) @ per_head(key).mT / math.sqrt(DIM / HEADS)
    blocked = torch.zeros(QUERIES, QUERIES, dtype=torch.float64)
    blocked[0, 2] = -torch.inf
    expected = x + layer.out_proj(by_scores(scores + blocked, layer.value(x)))
    assert_close(layer(x, position, blocked), expected)


@pytest.mark.parametrize("first", [False, True])
def test_cross_attention_adds_scores_of_content_and_of_position(first: bool) -> None:
    x, position, sine, tokens, where = inputs(1, *[QUERIES] * 3, *[TOKENS] * 2)
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, 4:] = True
    layer = ConditionalCrossAttention(DIM, HEADS, first=first).double()
    query, key, place = layer.query_content(x), layer.key_content(tokens), layer.key_position(where)
    if first:
        assert layer.query_position is not None
        query, key = query + layer.query_position(position), key + place
    scores = per_head(query) @ per_head(key).mT
    scores = scores + per_head(layer.query_sine(sine)) @ per_head(place).mT
    scores = scores / math.sqrt(2 * DIM / HEADS)  # the width of both together
    scores = scores.masked_fill(padding[:, None, None], -torch.inf)
    expected = x + layer.out_proj(by_scores(scores, layer.value(tokens)))
    assert_close(layer(x, position, sine, tokens, where, padding), expected)
    assert (layer.query_position is not None) == first


def test_width_must_be_a_multiple_of_the_heads() -> None:
    with pytest.raises(UserError, match=r"model\.heads=3"):
        ConditionalSelfAttention(16, 3)
