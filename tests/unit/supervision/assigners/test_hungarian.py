"""Optimal matching against all permutations, and its cost against a plain formula."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_convert, generalized_box_iou

from codetr.classification import Softmax
from codetr.structures import Predictions, Targets
from codetr.supervision.assigners import HungarianMatcher, ProbabilityCost, solve

CLASSES = 3


def random_boxes(*shape: int) -> Tensor:
    centre = torch.rand(*shape, 2, dtype=torch.float64) * 0.5 + 0.25
    return torch.cat([centre, torch.rand(*shape, 2, dtype=torch.float64) * 0.4 + 0.05], dim=-1)


def random_predictions(images: int, queries: int) -> Predictions:
    logits = torch.randn(images, queries, CLASSES, dtype=torch.float64) * 2
    return Predictions(logits=logits, boxes=random_boxes(images, queries))


def random_targets(counts: Sequence[int]) -> tuple[Targets, ...]:
    return tuple(
        Targets(
            boxes=random_boxes(count),
            labels=torch.randint(CLASSES, (count,)),
            weights=torch.ones(count),
            size=torch.tensor([40.0 + 30 * i, 60.0]),
        )
        for i, count in enumerate(counts)
    )


def plain_costs(logits: Tensor, boxes: Tensor, target: Targets) -> Tensor:
    """(Q, N): 2 class + 5 L1 - 2 GIoU of one image's queries and targets."""
    p = logits[:, target.labels].sigmoid()
    positive, negative = -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()
    corners, wanted = (
        box_convert(b, "cxcywh", "xyxy") * target.size.double().repeat(2)
        for b in (boxes, target.boxes)
    )
    distance = torch.cdist(boxes, target.boxes, p=1)
    return 2 * (positive - negative) + 5 * distance - 2 * generalized_box_iou(corners, wanted)


@pytest.mark.parametrize("queries", [5, 2])  # 2: fewer queries than targets
def test_no_permutation_is_cheaper(queries: int) -> None:
    matcher = HungarianMatcher()
    counts = [3, 0, 4]
    layers = [random_predictions(3, queries) for _ in range(2)]
    targets = random_targets(counts)
    assignments = matcher(layers, targets)
    assert len(assignments) == 2
    starts = [0, 3, 3]
    for layer, found in zip(layers, assignments, strict=True):
        for image, count in enumerate(counts):
            cost = plain_costs(layer.logits[image], layer.boxes[image], targets[image])
            own = found.image == image
            query, target = found.query[own], found.target[own] - starts[image]
            size = min(queries, count)
            assert len(query) == len(set(query.tolist())) == len(set(target.tolist())) == size
            best = min(
                sum(cost[q, n].item() for q, n in zip(qs, ns, strict=True))
                for qs in itertools.permutations(range(queries), size)
                for ns in itertools.combinations(range(count), size)
            )
            assert cost[query, target].sum().item() == pytest.approx(best)


def test_each_layer_is_matched_by_itself() -> None:
    layers = [random_predictions(2, 6) for _ in range(3)]
    targets = random_targets([2, 3])
    together = HungarianMatcher()(layers, targets)
    for layer, found in zip(layers, together, strict=True):
        (alone,) = HungarianMatcher()([layer], targets)
        assert torch.equal(found.query, alone.query)
        assert torch.equal(found.target, alone.target)


def test_after_a_softmax_a_class_costs_minus_its_probability() -> None:
    (targets,) = random_targets([2])
    logits = torch.randn(1, 4, CLASSES + 1, dtype=torch.float64)
    found = Predictions(logits=logits, boxes=random_boxes(1, 4), classification=Softmax(CLASSES))
    matcher = HungarianMatcher(cls=1.0, l1=0.0, giou=0.0, class_cost=ProbabilityCost())
    tables = matcher.tables([found], [targets])
    probability = logits[0].exp() / logits[0].exp().sum(-1, keepdim=True)
    assert_close(tables.costs[0], -torch.stack([probability[:, n] for n in targets.labels]))
    with pytest.raises(AssertionError, match=r"ProbabilityCost.* of Sigmoid"):
        matcher([random_predictions(1, 4)], [targets])


def test_a_perfect_prediction_is_found() -> None:
    (targets,) = random_targets([3])
    order = torch.tensor([2, 0, 1])
    logits = torch.full((1, 3, CLASSES), -6.0, dtype=torch.float64)
    logits[0, torch.arange(3), targets.labels[order]] = 6.0
    predictions = Predictions(logits=logits, boxes=targets.boxes[order][None])
    (found,) = HungarianMatcher()([predictions], [targets])
    assert found.target[found.query.argsort()].tolist() == order.tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_do_not_stop_it(value: float) -> None:
    """The loss check names the cause; a crash inside the solver would hide it."""
    predictions, targets = random_predictions(2, 4), random_targets([2, 1])
    predictions.logits[0, 1] = value
    predictions.boxes[0, 2] = value
    (found,) = HungarianMatcher()([predictions], targets)
    assert sorted(found.target.tolist()) == [0, 1, 2]
    if math.isnan(value):
        assert not {1, 2} & set(found.query[found.image == 0].tolist()), "others are cheaper"


def test_no_targets_at_all() -> None:
    (found,) = HungarianMatcher()([random_predictions(2, 4)], random_targets([0, 0]))
    assert len(found) == 0
    assert found.query.dtype == torch.int64


def test_half_precision_logits_are_measured_in_the_precision_of_the_boxes() -> None:
    predictions, targets = random_predictions(1, 6), random_targets([3])
    rounded = predictions.logits.bfloat16()
    coarse = Predictions(logits=rounded, boxes=predictions.boxes)
    exact = Predictions(logits=rounded.double(), boxes=predictions.boxes)
    ours, expected = HungarianMatcher()([coarse], targets), HungarianMatcher()([exact], targets)
    assert torch.equal(ours[0].query, expected[0].query)


def test_several_problems_are_solved_as_each_alone() -> None:
    matcher, few, many = HungarianMatcher(), random_targets([2, 0, 1]), random_targets([1, 4, 3])
    first = [random_predictions(3, 6) for _ in range(2)]
    second = [random_predictions(3, 9)]
    together = solve([matcher.tables(first, few), matcher.tables(second, many)])
    for answers, alone in zip(together, (matcher(first, few), matcher(second, many)), strict=True):
        assert len(answers) == len(alone)
        for one, other in zip(answers, alone, strict=True):
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.query, other.query)
            assert torch.equal(one.target, other.target)


def test_tables_hold_the_costs_within_images_alone() -> None:
    matcher, targets = HungarianMatcher(), random_targets([2, 0, 3])
    layers = [random_predictions(3, 7) for _ in range(2)]
    tables = matcher.tables(layers, targets)
    assert tables.costs.shape == (2, 5, 7), "no cost of a query with another image's target"
    for layer, costs in zip(layers, tables.costs, strict=True):
        for image, own in enumerate(costs.split(tables.counts)):
            expected = plain_costs(layer.logits[image], layer.boxes[image], targets[image])
            assert_close(own.T, expected)


class Largest(TorchDispatchMode):
    """Remembers the numbers of the largest tensor that an operation gave."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_nothing_on_the_way_is_larger_than_the_table_itself() -> None:
    layers = [random_predictions(6, 50) for _ in range(2)]
    with Largest() as largest:
        tables = HungarianMatcher().tables(layers, random_targets([4, 5, 6, 4, 5, 6]))
    assert largest.numel == tables.costs.numel()
