"""Matching that changes in known ways."""

import math

import pytest
import torch

from codetr.analysis.instability import Instability, Matched, changed_anchors, changed_queries
from codetr.errors import UserError

ANCHORS = torch.tensor(
    [[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2], [0.2, 0.8, 0.2, 0.2]]
)
OBJECTS = torch.tensor([[0, 1, -1, -1], [0, -1, 1, -1]])
LIMITS = (0.5, 0.05)


def test_nothing_changes_from_a_matching_to_itself() -> None:
    same = Matched(OBJECTS, ANCHORS)
    assert changed_queries(OBJECTS, OBJECTS).tolist() == [0, 0]
    assert changed_anchors(same, same, *LIMITS).tolist() == [0, 0]


def test_another_query_of_one_object_counts_twice_in_both() -> None:
    after = OBJECTS.clone()
    after[1] = torch.tensor([0, -1, -1, 1])
    assert changed_queries(OBJECTS, after).tolist() == [0, 2]
    found = changed_anchors(Matched(OBJECTS, ANCHORS), Matched(after, ANCHORS), *LIMITS)
    assert found.tolist() == [0, 2]


@pytest.mark.parametrize("width", [4, 2])
def test_permuted_queries_change_the_order_alone(width: int) -> None:
    order = torch.tensor([1, 2, 3, 0])
    before = Matched(OBJECTS, ANCHORS[:, :width])
    after = Matched(OBJECTS[:, order], ANCHORS[order, :width])
    assert changed_queries(before.objects, after.objects).min() > 0
    assert changed_anchors(before, after, *LIMITS).tolist() == [0, 0]


@pytest.mark.parametrize("width", [4, 2])
def test_anchors_may_move_a_little(width: int) -> None:
    before = Matched(OBJECTS, ANCHORS[:, :width])
    near, far = (Matched(OBJECTS, ANCHORS[:, :width] + shift) for shift in (0.01, 0.15))
    assert changed_anchors(before, near, *LIMITS).tolist() == [0, 0]
    assert changed_anchors(before, far, *LIMITS).tolist() == [4, 4]
    assert changed_queries(before.objects, far.objects).tolist() == [0, 0]


def test_equal_anchors_tell_no_queries_apart() -> None:
    same = Matched(OBJECTS, torch.full((4, 2), 0.5))
    assert all(map(math.isnan, changed_anchors(same, same, *LIMITS).tolist()))


def test_the_report_averages_over_images_layer_by_layer() -> None:
    after = OBJECTS.clone()
    after[0] = torch.tensor([-1, 1, 0, -1])
    stays, changed = Matched(OBJECTS, ANCHORS), Matched(after, ANCHORS)
    found = Instability().report({"a": [stays, stays], "b": [stays, changed]})
    assert found.rows == (("a", "b", "layer0", 1.0, 1.0), ("a", "b", "layer1", 0.0, 0.0))


def test_what_cannot_be_compared_is_an_error() -> None:
    one = [Matched(OBJECTS, ANCHORS)]
    with pytest.raises(UserError, match=r"^checkpoint: .*two or more"):
        Instability().report({"a": one})
    fewer = [Matched(OBJECTS[:, :3], ANCHORS[:3])]
    with pytest.raises(UserError, match=r"^checkpoint=b: has 2 layers with 3 queries, unlike a"):
        Instability().report({"a": one, "b": fewer})
