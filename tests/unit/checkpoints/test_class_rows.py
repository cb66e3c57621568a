import pytest
import torch
from torch import Tensor

from codetr.checkpoints.class_rows import (
    before_background,
    class_layout,
    copy_class_rows,
    match_classes,
    objectness,
    per_anchor,
    per_coordinate,
    per_score,
)

OLD = ("cat", "dog", "cow")
NEW = ("cow", "emu", "cat", "ant")
MATCH = match_classes(OLD, NEW)


def test_classes_are_matched_by_name() -> None:
    assert MATCH.source == (2, None, 0, None)
    assert (MATCH.copied, MATCH.added, MATCH.dropped) == (("cow", "cat"), ("emu", "ant"), ("dog",))
    assert not MATCH.identical
    assert match_classes(OLD, OLD).identical
    assert not match_classes(OLD, OLD[:2]).identical
    assert not match_classes(OLD[:2], OLD).identical


@pytest.mark.parametrize("spelling", ["traffic light", " Traffic_Light", "traffic-light "])
def test_spelling_does_not_count(spelling: str) -> None:
    assert match_classes(("a", "traffic light"), (spelling,)).source == (1,)
    assert match_classes(("a", spelling), ("traffic light",)).source == (1,)


def test_exact_names_go_first_and_ambiguous_ones_are_nobodys() -> None:
    old = ("Cat", "cat", "a_b", "a b")
    assert match_classes(old, ("cat", "Cat", "CAT", "a-b", "a b")).source == (1, 0, None, None, 3)
    assert match_classes(("x", "x"), ("x", "y")).source == (None, None)
    assert match_classes(("trafficlight",), ("traffic light",)).source == (None,)


def numbered(rows: int) -> Tensor:
    """Row i is (i, i)."""
    return torch.arange(rows, dtype=torch.float32)[:, None].repeat(1, 2)


@pytest.mark.parametrize(
    ("layout", "old", "new", "expected"),
    [
        (per_anchor, 3, 4, [2, -1, 0, -1]),
        (per_anchor, 6, 8, [2, -1, 0, -1, 5, -1, 3, -1]),
        (before_background, 4, 5, [2, -1, 0, -1, 3]),
        (per_score, 3, 4, [2, -1, 0, -1]),
        (per_score, 4, 5, [2, -1, 0, -1, 3]),  # after a softmax
        (per_coordinate, 12, 16, [8, 9, 10, 11, *[-1] * 4, 0, 1, 2, 3, *[-1] * 4]),
        (per_coordinate, 4, 4, [0, 1, 2, 3]),  # shared by all classes
        (objectness, 3, 4, [0, -1, -1, -1]),
    ],
)
def test_rows_go_with_their_class(layout, old: int, new: int, expected: list[int]) -> None:  # type: ignore[no-untyped-def]
    fresh = torch.full((new, 2), -1.0)
    copied = copy_class_rows(numbered(old), fresh, layout, MATCH)
    assert copied is not None
    assert copied[:, 0].tolist() == expected
    assert copied[:, 1].tolist() == expected
    assert (fresh == -1).all()


@pytest.mark.parametrize(
    ("layout", "old", "new"),
    [(per_anchor, 6, 4), (per_anchor, 4, 4), (before_background, 3, 5), (per_coordinate, 4, 16)],
)
def test_rows_that_do_not_fit_are_nothing(layout, old: int, new: int) -> None:  # type: ignore[no-untyped-def]
    if (layout, old, new) == (per_anchor, 4, 4):
        assert copy_class_rows(numbered(4), torch.zeros(4, 3), layout, MATCH) is None
    else:
        assert copy_class_rows(numbered(old), torch.zeros(new, 2), layout, MATCH) is None


def test_which_tensors_have_class_rows() -> None:
    heads = "schemes.collaborative.heads."
    assert class_layout("detector.head.classify.6.bias") is per_score
    assert class_layout(heads + "retinanet.cls.weight") is per_anchor
    assert class_layout(heads + "rcnn.box_head.cls.bias") is before_background
    assert class_layout(heads + "rcnn.box_head.reg.bias") is per_coordinate
    for name in ("rcnn.rpn.cls.weight", "atss.reg.weight", "atss.cls_tower.0.conv.weight"):
        assert class_layout(heads + name) is None
    layer = "detector.head.classify.6"
    assert class_layout(layer + ".weight", layer) is objectness
    assert class_layout("detector.head.classify.5.weight", layer) is per_score


def test_layers_before_the_scores_stay_as_they_are_where_classes_change_places() -> None:
    match = match_classes(["a", "b", "c"], ["c", "a", "b"])
    layout = class_layout("detector.head.classify.0.weight")
    assert layout is not None
    hidden = torch.randn(12, 12)  # of a perceptron, four times as many as classes
    assert torch.equal(copy_class_rows(hidden, torch.zeros(12, 12), layout, match), hidden)
    for scores in (torch.randn(3, 12), torch.randn(4, 12)):
        found = copy_class_rows(scores, torch.zeros_like(scores), layout, match)
        assert torch.equal(found[:3], scores[[2, 0, 1]])
        assert torch.equal(found[3:], scores[3:])
