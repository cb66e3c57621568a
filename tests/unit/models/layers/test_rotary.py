"""Rotations of channel pairs, against complex numbers."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from codetr.models.layers.rotary import rotary_table, rotate


def complex_rotation(tokens: Tensor, height: int, width: int, span: float) -> Tensor:
    """(S, dim) tokens, pair by pair a complex number times exp(i angle)."""
    dim = tokens.shape[1]
    per_axis = dim // 4
    result = torch.zeros_like(tokens)
    for row in range(height):
        for column in range(width):
            token = row * width + column
            for pair in range(dim // 2):
                on_row = pair < per_axis
                place = span * (row / height if on_row else column / width)
                angle = place * 10000 ** (-(pair % per_axis) / per_axis)
                number = complex(*tokens[token, 2 * pair : 2 * pair + 2].tolist())
                turned = number * complex(math.cos(angle), math.sin(angle))
                result[token, 2 * pair] = turned.real
                result[token, 2 * pair + 1] = turned.imag
    return result


@pytest.mark.parametrize(("height", "width"), [(3, 5), (16, 16), (1, 7)])
def test_pairs_turn_like_complex_numbers(height: int, width: int) -> None:
    tokens = torch.randn(2, height * width, 24, dtype=torch.float64)
    found = rotate(tokens, rotary_table(height, width, 24))
    expected = torch.stack([complex_rotation(t, height, width, 16.0) for t in tokens])
    assert_close(found, expected, atol=1e-5, rtol=1e-5)  # the table is in float32


def test_products_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 8, dtype=torch.float64)
    table = rotary_table(4, 4, 8, span=4.0)
    products = rotate(query.expand(16, -1), table) @ rotate(key.expand(16, -1), table).T
    grid = products.reshape(4, 4, 4, 4)
    assert_close(grid[:3, :3, :3, :3], grid[1:, 1:, 1:, 1:], atol=1e-5, rtol=0)
    assert not torch.allclose(grid[0, 0], grid[0, 1])


def test_resolution_refines_positions_and_precision_stays_that_of_the_tokens() -> None:
    fine, coarse = rotary_table(8, 8, 16), rotary_table(4, 4, 16)
    assert_close(fine.reshape(2, 8, 8, 16)[:, ::2, ::2], coarse.reshape(2, 4, 4, 16))
    assert coarse.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert rotate(torch.ones(16, 16, dtype=dtype), coarse).dtype == dtype
