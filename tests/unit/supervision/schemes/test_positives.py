"""How many candidates become queries, which ones, and what supervises them."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from codetr.structures import Candidates, QueryGroup
from codetr.supervision.schemes.positives import count_positives, positive_group

CLASSES, DIM = 4, 6
SIZES = (torch.tensor([40.0, 30.0]), torch.tensor([20.0, 50.0]))


def candidates(labels: list[int], offset: int) -> Candidates:
    """Candidate m has the box of size offset + m (in hundredths) and says so everywhere."""
    count = len(labels)
    identity = (offset + torch.arange(count)) / 100
    boxes = torch.stack([torch.full((count,), 0.5)] * 2 + [identity] * 2, dim=1)
    classes = torch.tensor(labels, dtype=torch.int64)
    features = identity[:, None].expand(-1, DIM).clone().requires_grad_()
    return Candidates(
        boxes=boxes,
        labels=classes,
        targets=(boxes + 0.001) * (classes < CLASSES)[:, None],
        features=features,
    )


def embedding(anchors: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    return features * 2, anchors.sum(-1, keepdim=True).expand_as(features)


def build(*pictures: Candidates, limits: tuple[int, int] = (3, 300)) -> QueryGroup:
    (counts,) = count_positives([pictures], CLASSES)
    sizes = SIZES[: len(pictures)]
    return positive_group("p", pictures, sizes, CLASSES, embedding, limits, counts)


def identities(group: QueryGroup, image: int) -> list[int]:
    """Which candidates the queries of an image are."""
    return (group.queries.anchors[image, :, 2] * 100).round().int().tolist()


BACKGROUND = CLASSES
A = candidates([BACKGROUND, 2, BACKGROUND, 0, 1, 3, BACKGROUND, BACKGROUND], 10)  # four positives
B = candidates([1, BACKGROUND, BACKGROUND, BACKGROUND, BACKGROUND, BACKGROUND, 3], 30)  # two


def test_the_image_with_most_positives_gives_the_number_and_others_are_filled() -> None:
    group = build(A, B)
    assert len(group) == 4
    assert identities(group, 0) == [11, 13, 14, 15], "positives in their order"
    assert identities(group, 1)[:2] == [30, 36]
    filled = identities(group, 1)[2:]
    assert len(set(filled)) == 2
    assert set(filled) <= set(range(31, 36)), "different negatives of the same image"


def test_targets_and_assignment_are_those_of_the_positives() -> None:
    group = build(A, B)
    assert [t.labels.tolist() for t in group.targets] == [[2, 0, 1, 3], [1, 3]]
    for image, (target, size) in enumerate(zip(group.targets, SIZES, strict=True)):
        count = len(target)
        assert_close(target.boxes, group.queries.anchors[image, :count] + 0.001)
        assert target.weights.tolist() == [1] * count
        assert torch.equal(target.size, size)
    assignment = group.assignment
    pairs = torch.stack([assignment.image, assignment.query, assignment.target]).T
    assert pairs.tolist() == [[0, 0, 0], [0, 1, 1], [0, 2, 2], [0, 3, 3], [1, 0, 4], [1, 1, 5]]


def test_too_many_positives_are_drawn_at_random_up_to_the_cap() -> None:
    drawn = set()
    for seed in range(20):
        torch.manual_seed(seed)
        group = build(A, B, limits=(1, 3))
        chosen = identities(group, 0)
        assert len(group) == len(set(chosen)) == 3
        assert set(chosen) <= {11, 13, 14, 15}
        assert [len(t) for t in group.targets] == [3, 2]
        assert_close(group.targets[0].boxes, group.queries.anchors[0] + 0.001)
        drawn |= set(chosen)
    assert drawn == {11, 13, 14, 15}


def test_there_are_never_fewer_than_the_floor_unless_candidates_run_out() -> None:
    group = build(B, limits=(6, 300))
    assert len(group) == 6
    assert identities(group, 0)[:2] == [30, 36]
    assert len(build(A, B, limits=(50, 300))) == 7, "B has seven candidates"


def test_without_positives_there_are_background_queries_and_no_targets() -> None:
    group = build(candidates([BACKGROUND] * 5, 10), candidates([BACKGROUND] * 4, 20))
    assert len(group) == 3
    assert len(group.assignment) == 0
    assert [len(t) for t in group.targets] == [0, 0]
    assert group.assignment.query.dtype == torch.int64


def test_features_carry_gradients_and_go_with_their_boxes() -> None:
    group = build(A, B)
    assert_close(group.queries.content[..., 0], 2 * group.queries.anchors[..., 2])
    A.features.grad = B.features.grad = None
    group.queries.content.sum().backward()
    used = A.features.grad.any(dim=1)
    assert used.nonzero()[:, 0].tolist() == [1, 3, 4, 5]
    assert not group.queries.anchors.requires_grad


def test_the_embedding_sees_clamped_boxes_and_the_decoder_the_boxes_themselves() -> None:
    """Official code: logits are clamped by 1e-5 before they are embedded."""
    outside = candidates([1, 2, 0], 10)
    outside.boxes[:] = torch.tensor([[1.2, -0.3, 0.4, 2.0]] * 3)
    group = build(outside)
    low = 1 / (1 + math.exp(-math.log(1e-5)))
    expected = (1 - low) + low + 0.4 + (1 - low)
    assert group.queries.position[0, 0, 0].item() == pytest.approx(expected, abs=1e-4)
    assert torch.equal(group.queries.anchors[0], outside.boxes)
