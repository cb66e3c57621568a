"""Sine encodings channel by channel from their formula."""

import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from codetr.models.layers import sine_coordinates, sine_tokens


def channel(value: float, index: int, channels: int, temperature: float) -> float:
    """Attention is all you need, section 3.5: even channels sine, odd ones cosine."""
    angle = value / temperature ** (2 * (index // 2) / channels)
    return math.sin(angle) if index % 2 == 0 else math.cos(angle)


@pytest.mark.parametrize(("temperature", "offset"), [(20.0, 0.0), (10000.0, -0.5)])
def test_map_counts_valid_cells(temperature: float, offset: float) -> None:
    padding = torch.ones(2, 3, 4, dtype=torch.bool)
    valid = [(3, 4), (2, 3)]
    for image, (height, width) in enumerate(valid):
        padding[image, :height, :width] = False
    dim = 8
    like = torch.zeros(1, dtype=torch.float64)
    other = torch.zeros(2, 2, 2, dtype=torch.bool)  # of another level
    tokens = sine_tokens([other, padding], dim, temperature, offset, like)
    assert_close(tokens[:, :4], sine_tokens([other], dim, temperature, offset, like))
    found = tokens[:, 4:].transpose(1, 2).unflatten(2, (3, 4))
    for image, (height, width) in enumerate(valid):
        for row in range(height):
            for column in range(width):
                y = (row + 1 + offset) / (height + 1e-6) * 2 * math.pi
                x = (column + 1 + offset) / (width + 1e-6) * 2 * math.pi
                expected = [
                    channel(v, i, dim // 2, temperature) for v in (y, x) for i in range(dim // 2)
                ]
                assert found[image, :, row, column].tolist() == pytest.approx(expected, abs=1e-12)


class Sums(TorchDispatchMode):
    """Remembers the dtypes of cumulative sums."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if "cumsum" in str(function):
            self.dtypes.add(result.dtype)
        return result


def test_cells_are_counted_in_whole_numbers() -> None:
    """Deterministic algorithms refuse a cumulative sum of floats on CUDA."""
    with Sums() as sums:
        sine_tokens([torch.zeros(1, 3, 4, dtype=torch.bool)], 8, 20.0, 0.0, torch.zeros(1))
    assert sums.dtypes == {torch.int64}


def test_coordinates_are_encoded_one_after_the_other() -> None:
    boxes = torch.rand(3, 4, dtype=torch.float64)
    found = sine_coordinates(boxes, 6, temperature=50.0)
    expected = [
        [channel(v * 2 * math.pi, i, 6, 50.0) for v in box for i in range(6)]
        for box in boxes.tolist()
    ]
    assert_close(found, torch.tensor(expected, dtype=torch.float64))
