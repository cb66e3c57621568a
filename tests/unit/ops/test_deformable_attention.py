"""Deformable attention against recorded numbers and against a loop over every sampling point."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from codetr.ops import multi_scale_deformable_attention

SHAPES = ((4, 3), (2, 5))


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    value = torch.randn(2, 22, 2, 3, dtype=dtype)
    locations = torch.rand(2, 4, 2, 2, 3, 2, dtype=dtype) * 1.6 - 0.3  # some lie outside
    weights = torch.rand(2, 4, 2, 6, dtype=dtype).softmax(-1).view(2, 4, 2, 2, 3)
    return value, locations, weights


def tap(level: Tensor, x: int, y: int) -> Tensor:
    """A value of a (H, W, D) map, zero outside it."""
    height, width, dim = level.shape
    inside = 0 <= x < width and 0 <= y < height
    return level[y, x] if inside else level.new_zeros(dim)


def naive(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads, _, points, _ = locations.shape
    out = value.new_zeros(batch, queries, heads, value.shape[-1])
    starts = np.cumsum([0] + [h * w for h, w in SHAPES])
    for b, q, h, (i, shape), p in itertools.product(
        range(batch), range(queries), range(heads), enumerate(SHAPES), range(points)
    ):
        level = value[b, starts[i] : starts[i + 1], h].view(*shape, -1)
        x = float(locations[b, q, h, i, p, 0]) * shape[1] - 0.5
        y = float(locations[b, q, h, i, p, 1]) * shape[0] - 0.5
        left, top = int(np.floor(x)), int(np.floor(y))
        for dx, dy in itertools.product((0, 1), (0, 1)):
            share = (1 - abs(x - left - dx)) * (1 - abs(y - top - dy))
            out[b, q, h] += weights[b, q, h, i, p] * share * tap(level, left + dx, top + dy)
    return out.flatten(2)


def test_equals_the_loop() -> None:
    value, locations, weights = inputs()
    ours = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    torch.testing.assert_close(ours, naive(value, locations, weights), rtol=0, atol=1e-12)


def test_gradients() -> None:
    arguments = [x.requires_grad_() for x in inputs()]
    assert torch.autograd.gradcheck(
        lambda v, x, w: multi_scale_deformable_attention(v, SHAPES, x, w), arguments
    )


def test_autocast_keeps_locations_in_float32() -> None:
    value, locations, weights = inputs(torch.float32)
    expected = multi_scale_deformable_attention(
        value.bfloat16().float(), SHAPES, locations, weights
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = multi_scale_deformable_attention(value.bfloat16(), SHAPES, locations, weights)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.golden
@pytest.mark.parametrize("case", [0, 1, 2])
def test_recorded_numbers(shared: Path, case: int) -> None:
    recorded = np.load(shared / "golden" / "msda" / "io.npz")

    def array(name: str) -> Tensor:
        return torch.from_numpy(recorded[f"case{case}/{name}"])

    value, locations, weights = (
        array(name).double().requires_grad_() for name in ("value", "loc", "att")
    )
    shapes = tuple((int(h), int(w)) for h, w in array("shapes"))
    out = multi_scale_deformable_attention(value, shapes, locations, weights)
    out.backward(array("grad_out").double())
    torch.testing.assert_close(out.detach(), array("out").double(), rtol=0, atol=1e-10)
    for ours, name in ((value, "grad_value"), (locations, "grad_loc"), (weights, "grad_att")):
        difference = (ours.grad - array(name).double()).abs()
        if case == 0 and name == "grad_loc":
            difference[0, 1, 1, 1, 0, 1] = 0  # on a pixel centre: one-sided, see its README
        assert difference.max() < 1e-10, name
