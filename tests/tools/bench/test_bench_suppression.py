"""The ways to suppress that are measured keep what a call per set keeps."""

import pytest
import torch

from tools.bench import suppression
from tools.bench.suppression import WAYS, by_fixed_point, crowd

SIZES = (60, 0, 35, 1)


@pytest.mark.parametrize("spread", [100.0, 400.0])
@pytest.mark.parametrize("name", WAYS)
def test_the_same_boxes_are_kept(name: str, spread: float) -> None:
    boxes, scores = crowd(3, SIZES, spread, torch.device("cpu"))
    boxes[..., 2:] += spread
    boxes[0, 5] = boxes[0, 5, :1]  # without area
    scores[1] = scores[1].round(decimals=1)  # ties
    kept = WAYS[name](boxes, scores, SIZES, 0.4)
    assert torch.equal(kept, suppression.set_by_set(boxes, scores, SIZES, 0.4))
    assert 5 < kept.sum() < kept.numel() - 5


def test_a_chain_longer_than_the_rounds_between_two_looks_is_settled() -> None:
    """Every box overlaps its two neighbours alone: every other one is kept."""
    number = 5 * suppression.ROUNDS
    left = torch.arange(number) * 4.0
    boxes = torch.stack([left, left * 0, left + 10, left * 0 + 10], dim=1)[None]
    scores = torch.linspace(1, 0.5, number)[None]
    kept = by_fixed_point(boxes, scores, (number,), 0.4)
    assert kept[0].tolist() == [i % 2 == 0 for i in range(number)]
