"""Distances between queries, worked out by hand."""

import math

import pytest
import torch

from codetr.analysis.queries import measure

CENTRES = torch.tensor([[0.0, 0.0], [30.0, 40.0]])
CONTENT = torch.eye(2)
DIAGONAL = torch.tensor(100.0)


def test_identical_queries_are_at_distance_0() -> None:
    nearest, everyone, content = measure((CENTRES, CONTENT), (CENTRES, 3 * CONTENT), DIAGONAL)
    assert nearest == 0
    assert everyone == pytest.approx(25)  # two pairs of four are half the diagonal apart
    assert content == pytest.approx(0, abs=1e-6)


def test_each_original_query_takes_its_nearest() -> None:
    original = (torch.tensor([[0.0, 10.0], [30.0, 40.0]]), torch.tensor([[-1.0, 0.0], [0.0, 1.0]]))
    nearest, _, content = measure(original, (CENTRES, CONTENT), DIAGONAL)
    assert nearest == pytest.approx(5)  # 10 % and 0 %
    assert content == pytest.approx(0.5)  # orthogonal to one and against the other: 1; and 0


def test_nothing_is_far_from_nothing() -> None:
    none = (CENTRES[:0], CONTENT[:0])
    assert all(map(math.isnan, measure(none, (CENTRES, CONTENT), DIAGONAL)))
    assert all(map(math.isnan, measure((CENTRES, CONTENT), none, DIAGONAL)))
