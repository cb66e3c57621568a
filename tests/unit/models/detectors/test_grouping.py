"""Who sees whom when several query groups share a decoder pass."""

from collections.abc import Sequence
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from codetr.models.detectors.grouping import additive, attention_mask, joined, separable, split
from codetr.models.layers import SelfAttention
from codetr.structures import Predictions, Queries, QueryGroup, Tap

DIM = 4


def group(
    name: str,
    size: int,
    sees: Sequence[str] = (),
    blocked: Tensor | None = None,
    padding: Tensor | None = None,
    position: bool = False,
) -> QueryGroup:
    queries = Queries(
        content=torch.randn(2, size, DIM),
        anchors=torch.rand(2, size, 4),
        position=torch.randn(2, size, DIM) if position else None,
        padding=padding,
    )
    return QueryGroup(name=name, queries=queries, sees=tuple(sees), blocked=blocked)


def names(sets: list[list[QueryGroup]]) -> list[list[str]]:
    return [[g.name for g in together] for together in sets]


def test_one_group_that_sees_all_of_itself_needs_no_mask() -> None:
    assert attention_mask([group("main", 3)]) is None


def test_groups_see_themselves_alone() -> None:
    allowed = attention_mask([group("main", 2), group("a", 3), group("b", 1)])
    owner = torch.tensor([0, 0, 1, 1, 1, 2])
    assert torch.equal(allowed, owner[:, None] == owner)


@pytest.mark.parametrize("order", ["main first", "main last"])
def test_seeing_goes_one_way(order: str) -> None:
    groups = [group("main", 2), group("noisy", 3, sees=["main"])]
    if order == "main last":
        groups.reverse()
    allowed = attention_mask(groups)
    main, noisy = (
        (slice(0, 2), slice(2, 5)) if order == "main first" else (slice(3, 5), slice(0, 3))
    )
    assert allowed[noisy].all()
    assert allowed[main, main].all()
    assert not allowed[main, noisy].any()


def test_blocked_holds_within_the_group() -> None:
    blocked = torch.tensor([[False, True], [True, False]])
    expected = torch.tensor([[1, 0], [0, 1]], dtype=torch.bool)
    assert torch.equal(attention_mask([group("a", 2, blocked=blocked)]), expected)
    allowed = attention_mask([group("main", 1), group("a", 2, blocked=blocked, sees=["main"])])
    assert allowed.int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]


def test_padded_queries_are_seen_by_none_but_themselves() -> None:
    padding = torch.tensor([[False, False], [False, True]])
    allowed = attention_mask([group("main", 2), group("a", 2, sees=["main"], padding=padding)])
    assert allowed.shape == (2, 1, 4, 4), "broadcasts over attention heads"
    assert allowed[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert allowed[1, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert allowed.any(-1).all(), "a row without a key would be NaN"
    alone = attention_mask([group("a", 2, padding=padding)])
    assert alone[1, 0].int().tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ({"main": [], "a": [], "b": []}, [["main"], ["a"], ["b"]]),
        ({"main": [], "a": ["main"], "b": []}, [["main", "a"], ["b"]]),
        ({"a": ["main"], "main": [], "b": ["main"]}, [["a", "main", "b"]]),
        ({"main": [], "a": [], "b": ["main", "a"]}, [["main", "a", "b"]]),
        ({"main": [], "a": ["b"], "b": [], "c": ["a"]}, [["main"], ["a", "b", "c"]]),
    ],
)
def test_separable_sets_keep_together_who_sees_whom(
    links: dict[str, list[str]], expected: list[list[str]]
) -> None:
    groups = [group(name, 1, sees=sees) for name, sees in links.items()]
    assert sorted(names(separable(groups))) == sorted(expected)


def test_joined_is_undone_by_split() -> None:
    groups = [group("main", 2, position=True), group("a", 3, position=True)]
    queries = joined(groups)
    assert queries.content.shape == (2, 5, DIM)
    assert torch.equal(queries.position[:, 2:], groups[1].queries.position)
    layers = [Predictions(logits=queries.content + i, boxes=queries.anchors) for i in (0, 1)]
    tap = Tap(hidden=queries.content - 1, anchors=queries.anchors, read=lambda h, a: layers[0])
    decoded = split(groups, layers, {"inside": [tap, tap]})
    assert list(decoded) == ["main", "a"]
    for own in groups:
        answer = decoded[own.name]
        assert answer.group is own
        assert len(answer.layers) == 2
        assert torch.equal(answer.layers[1].logits, own.queries.content + 1)
        assert torch.equal(answer.layers[0].boxes, own.queries.anchors)
        assert len(answer.taps["inside"]) == 2
        assert torch.equal(answer.taps["inside"][1].hidden, own.queries.content - 1)
        assert torch.equal(answer.taps["inside"][1].anchors, own.queries.anchors)


def test_no_position_unless_every_group_has_one() -> None:
    assert joined([group("main", 2, position=True), group("a", 1)]).position is None


@pytest.mark.parametrize("padding", [None, torch.tensor([[False] * 3, [False, True, True]])])
def test_the_additive_mask_forbids_the_same(padding: torch.Tensor | None) -> None:
    allowed = attention_mask([group("main", 2), group("a", 3, sees=["main"], padding=padding)])
    mask = additive(allowed, torch.zeros(1, 1, 1))
    assert mask.shape == allowed.shape
    assert torch.equal(mask == 0, allowed)
    assert torch.equal(mask == -torch.inf, ~allowed)
    assert mask.stride(-2) % 8 == 0, "kernels would copy it"
    assert additive(None, torch.zeros(1, 1, 1)) is None


@pytest.mark.parametrize(
    ("content", "autocast", "expected"),
    [
        (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.bfloat16, torch.float64),
        (torch.bfloat16, None, torch.bfloat16),
    ],
    ids=str,
)
def test_the_additive_mask_has_the_dtype_that_attention_runs_in(
    content: torch.dtype, autocast: torch.dtype | None, expected: torch.dtype
) -> None:
    attention, x = SelfAttention(8, 2).to(content), torch.randn(1, 3, 8, dtype=content)
    seen: list[torch.dtype] = []

    def spy(query: torch.Tensor, *others: torch.Tensor, attn_mask: torch.Tensor, **_: object):
        seen.extend([query.dtype, attn_mask.dtype])
        return query

    with (
        mock.patch.object(F, "scaled_dot_product_attention", spy),
        torch.autocast("cpu", autocast, enabled=autocast is not None),
    ):
        attention(x, x, additive(torch.eye(3, dtype=torch.bool), x))
    assert seen == [expected] * 2
