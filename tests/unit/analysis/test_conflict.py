"""Maps of heads, and their kl_divergences worked out by hand."""

import math

import pytest
import torch

from codetr.analysis.conflict import conflict, grad_cam, kl_divergences, probabilities_of
from codetr.structures import Memory

SHAPES = ((2, 2), (1, 1))


def memory(tokens: torch.Tensor) -> Memory:
    return Memory(
        tokens=tokens,
        padding=torch.zeros(1, 5, dtype=torch.bool),
        shapes=SHAPES,
        strides=(8, 16),
        valid_ratios=torch.ones(1, 2, 2),
    )


def test_identical_heads_have_distance_0() -> None:
    same = probabilities_of(torch.rand(3, 4))
    found = kl_divergences(torch.stack([same, same]))
    assert torch.equal(found, torch.zeros(2, 2, dtype=torch.float64))
    assert conflict(found) == 0


def test_divergence_is_kullback_leibler() -> None:
    p, q = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.25, 0.75]).double()
    found = kl_divergences(torch.stack([p, q]))
    assert found[0, 1].item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert found[1, 0].item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_maps_sum_to_1_whatever_their_scale() -> None:
    found = probabilities_of(torch.tensor([[3.0, 0.0], [1.5, 0.0]]))
    weights = [math.e, 1.0, math.e**0.5, 1.0]
    assert found.tolist() == pytest.approx([w / sum(weights) for w in weights])
    assert probabilities_of(torch.zeros(2, 2)).tolist() == [0.25] * 4


def test_channels_are_weighted_by_their_mean_gradient() -> None:
    tokens = torch.tensor([[[1.0, 0], [0, 1], [2, 0], [0, 3], [1, 1]]])
    gradient = torch.zeros(1, 5, 2)
    gradient[0, 0] = torch.tensor([4.0, -4.0])  # of the fine level: means 1 and -1
    gradient[0, 4] = torch.tensor([2.0, 1.0])  # of the coarse one
    assert grad_cam(memory(tokens), gradient).tolist() == [[4.0, 3.0], [5.0, 3.0]]


def test_the_mean_is_among_auxiliary_heads() -> None:
    one = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    assert conflict(one) == 2
    two = torch.tensor([[0.0, 9.0, 9.0], [9.0, 0.0, 1.0], [9.0, 2.0, 0.0]])
    assert conflict(two) == 1.5
