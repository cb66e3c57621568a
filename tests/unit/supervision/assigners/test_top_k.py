"""One-to-many assignment against a plain reading of its rules, one query and target at a time."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import box_convert, box_iou

from codetr.errors import UserError
from codetr.structures import Assignment, Predictions, Targets
from codetr.supervision.assigners import TopKAssigner
from codetr.supervision.assigners.top_k import with_best_target

CLASSES = 3


def random_boxes(*shape: int) -> Tensor:
    centre = torch.rand(*shape, 2, dtype=torch.float64) * 0.3 + 0.35
    return torch.cat([centre, torch.rand(*shape, 2, dtype=torch.float64) * 0.3 + 0.3], dim=-1)


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


def expected_quality(predictions: Predictions, image: int, targets: Targets) -> Tensor:
    """(N, Q), from boxes relative to the image."""
    corners = [
        box_convert(boxes, "cxcywh", "xyxy") for boxes in (targets.boxes, predictions.boxes[image])
    ]
    probability = predictions.logits[image].sigmoid()[:, targets.labels].T
    return 0.7 * box_iou(*corners) + 0.3 * probability


def expected_pairs(quality: list[list[float]], k: int, threshold: float) -> list[tuple[int, int]]:
    """(query, target) by ascending quality, where any number of queries may be positive."""
    targets, queries = range(len(quality)), range(len(quality[0]))
    best = [max(targets, key=lambda g: quality[g][q]) for q in queries]
    rescued = {max(queries, key=lambda q: quality[g][q]) for g in targets}
    positive = [q for q in queries if quality[best[q]][q] >= threshold or q in rescued]
    pairs = []
    for g in targets:
        votes = sum(best[q] == g for q in positive)
        ranked = sorted(queries, key=lambda q: -quality[g][q])
        pairs += [(quality[g][q], q, g) for q in ranked[: min(votes, k)]]
    return [(q, g) for _, q, g in sorted(pairs)]


def pairs_of(assignment: Assignment, image: int, offset: int) -> list[tuple[int, int]]:
    own = assignment.image == image
    return list(
        zip(assignment.query[own].tolist(), (assignment.target[own] - offset).tolist(), strict=True)
    )


@pytest.mark.parametrize(("k", "threshold"), [(6, 0.4), (2, 0.4), (3, 0.9), (40, 0.0)])
def test_every_layer_and_image_follows_the_rules(k: int, threshold: float) -> None:
    layers, targets = [random_predictions(3, 30) for _ in range(2)], random_targets([5, 0, 3])
    assigner = TopKAssigner(k=k, threshold=threshold, share=1.0)
    found = assigner(layers, targets)
    assert len(found) == 2
    for layer, assignment in zip(layers, found, strict=True):
        for image, offset in ((0, 0), (2, 5)):
            quality = expected_quality(layer, image, targets[image])
            ours = assigner.quality(layer.logits[image], layer.boxes[image], targets[image])
            assert_close(ours, quality)
            expected = expected_pairs(quality.tolist(), k, threshold)
            assert pairs_of(assignment, image, offset) == expected
        assert not (assignment.image == 1).any()


def test_some_cases_are_not_trivial() -> None:
    """In the cases above a query serves several targets, and a target gets none."""
    several = none = False
    for seed in range(5):
        torch.manual_seed(seed)
        predictions, targets = random_predictions(1, 30), random_targets([6])
        (found,) = TopKAssigner(share=1.0)([predictions], targets)
        several |= len(found.query.unique()) < len(found)
        none |= len(found.target.unique()) < 6
    assert several
    assert none


def test_only_a_share_of_the_queries_votes_at_random() -> None:
    predictions, targets = random_predictions(1, 40), random_targets([2])
    assigner = TopKAssigner(k=40, threshold=0.0, share=0.25)
    counts = set()
    for seed in range(10):
        torch.manual_seed(seed)
        (found,) = assigner([predictions], targets)
        assert len(found) == 10
        counts.add(int((found.target == 0).sum()))
    assert len(counts) > 1


def test_nothing_is_random_below_that_share() -> None:
    predictions, targets = random_predictions(2, 40), random_targets([2, 1])
    assigner = TopKAssigner(threshold=2.0)  # the rescued queries alone
    torch.manual_seed(1)
    (one,) = assigner([predictions], targets)
    torch.manual_seed(2)
    (other,) = assigner([predictions], targets)
    assert len(one) == 3
    for name in ("image", "query", "target"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_renumbered_queries_are_assigned_alike() -> None:
    predictions, targets = random_predictions(1, 30), random_targets([4])
    order = torch.randperm(30)
    assigner = TopKAssigner(share=1.0)
    moved = predictions.map(lambda value: value[:, order])
    (one,), (other,) = assigner([predictions], targets), assigner([moved], targets)
    assert torch.equal(one.query, order[other.query])
    assert torch.equal(one.target, other.target)


@pytest.mark.parametrize("queries", [1, 3])
def test_fewer_queries_than_k_are_enough(queries: int) -> None:
    predictions, targets = random_predictions(1, queries), random_targets([2])
    (found,) = TopKAssigner(share=1.0)([predictions], targets)
    quality = expected_quality(predictions, 0, targets[0])
    assert pairs_of(found, 0, 0) == expected_pairs(quality.tolist(), 6, 0.4)


def test_without_targets_there_are_no_pairs() -> None:
    found = TopKAssigner()([random_predictions(2, 8)] * 3, random_targets([0, 0]))
    assert [len(assignment) for assignment in found] == [0, 0, 0]
    assert found[0].query.dtype == torch.int64


def test_predictions_are_not_differentiated() -> None:
    predictions = random_predictions(1, 8).map(lambda value: value.requires_grad_())
    (found,) = TopKAssigner()([predictions], random_targets([2]))
    assert len(found) > 0


@pytest.mark.parametrize("wrong", [{"k": 0}, {"share": 0.0}, {"share": 1.5}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"scheme\.mixed\.assigner has"):
        TopKAssigner(**wrong)  # type: ignore[arg-type]


def test_all_pairs_of_a_query_name_its_last_target() -> None:
    given = Assignment(
        image=torch.tensor([0, 0, 1, 0, 1]),
        query=torch.tensor([2, 1, 2, 2, 2]),
        target=torch.tensor([0, 1, 2, 3, 4]),
    )
    found = with_best_target(given, images=2, queries=3)
    assert found.target.tolist() == [3, 1, 4, 3, 4]
    assert torch.equal(found.query, given.query)
    assert torch.equal(found.image, given.image)


def test_no_pairs_stay_none() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    given = Assignment(image=none, query=none, target=none)
    assert len(with_best_target(given, images=2, queries=3)) == 0
