"""FCOS's assignment against a loop over points and boxes."""

import math

import pytest
import torch

from codetr.supervision.assigners.max_iou import NEGATIVE
from codetr.supervision.assigners.points import PointAssigner


def naive(
    points: list[list[float]], reach: list[list[float]], boxes: list[list[float]]
) -> list[int]:
    assigned = []
    for (x, y), (low, high) in zip(points, reach, strict=True):
        choice, smallest = NEGATIVE, math.inf
        for number, (x1, y1, x2, y2) in enumerate(boxes):
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            area = (x2 - x1) * (y2 - y1)
            if min(sides) > 0 and low <= max(sides) <= high and area < smallest:
                choice, smallest = number, area
        assigned.append(choice)
    return assigned


@pytest.mark.parametrize("count", [0, 1, 8, 300])
@pytest.mark.parametrize("seed", range(3))
def test_points_equal_loops(count, seed) -> None:
    """Whole coordinates: points lie on sides, distances on the bounds, areas are equal."""
    torch.manual_seed(seed)
    points = torch.randint(0, 40, (80, 2)).double()
    bounds = torch.tensor([[0.0, 8.0], [8.0, 16.0], [16.0, math.inf]], dtype=torch.float64)
    reach = bounds[torch.randint(3, (80,))]
    low = torch.randint(0, 24, (count, 2))
    boxes = torch.cat([low, low + torch.randint(2, 24, (count, 2))], dim=1).double()
    found = PointAssigner()(points, reach, boxes)
    assert found.tolist() == naive(points.tolist(), reach.tolist(), boxes.tolist())
    if count > 1:
        assert found.max() >= 0


def test_first_of_equal_areas_and_both_bounds() -> None:
    boxes = torch.tensor([[0.0, 0, 16, 16], [0, 0, 16, 16], [0, 0, 8, 32]])
    points = torch.tensor([[8.0, 8], [8.0, 8], [0, 8], [4, 8]])
    reach = torch.tensor([[0.0, 8], [8, 16], [0, 64], [0, 23]])
    assert PointAssigner()(points, reach, boxes).tolist() == [0, 0, NEGATIVE, 0]
