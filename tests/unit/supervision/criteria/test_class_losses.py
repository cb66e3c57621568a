"""Classification losses; cross-entropy with background against torch's own weighted mean."""

import pytest
import torch
from scoring import losses_of
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from codetr.classification import Softmax
from codetr.loss_terms import Count
from codetr.structures import Assignment, Predictions, Targets
from codetr.supervision.criteria import (
    FederatedClassification,
    SetCriterion,
    SoftmaxClassification,
    Supervised,
    measure,
)

K, BACKGROUND = 3, 0.1


def predictions(images: int, queries: int) -> Predictions:
    logits = torch.randn(images, queries, K + 1, dtype=torch.float64, requires_grad=True)
    boxes = torch.rand(images, queries, 4, dtype=torch.float64) * 0.5 + 0.2
    return Predictions(logits=logits, boxes=boxes, classification=Softmax(K))


def targets(labels: list[list[int]], weight: float = 1.0) -> list[Targets]:
    return [
        Targets(
            boxes=torch.rand(len(own), 4) * 0.5 + 0.2,
            labels=torch.tensor(own, dtype=torch.int64),
            weights=torch.full((len(own),), weight),
            size=torch.tensor([30.0, 20.0]),
        )
        for own in labels
    ]


def pairs(*triples: tuple[int, int, int]) -> Assignment:
    table = torch.tensor(triples, dtype=torch.int64).reshape(-1, 3)
    return Assignment(image=table[:, 0], query=table[:, 1], target=table[:, 2])


def expected(logits: Tensor, labels: list[list[int]]) -> Tensor:
    weight = torch.tensor([1.0] * K + [BACKGROUND], dtype=logits.dtype)
    return F.cross_entropy(logits.flatten(0, 1), torch.tensor(labels).flatten(), weight)


@pytest.mark.parametrize("num_boxes", [1.0, 7.0])
def test_is_the_weighted_mean_whatever_the_number_of_boxes(num_boxes: float) -> None:
    criterion = SetCriterion(SoftmaxClassification(BACKGROUND))
    layers = [predictions(2, 4), predictions(2, 4)]
    matched = [pairs((0, 1, 0), (0, 3, 1)), pairs((0, 0, 1), (1, 2, 2), (0, 2, 0))]
    count = Count(torch.tensor(num_boxes, dtype=torch.float64))
    group = Supervised(
        criterion=criterion,
        layers=layers,
        targets=targets([[2, 0], [1]]),
        assignments=matched,
        num_boxes=count,
    )
    (found,) = measure([group])
    assert_close(found[0]["cls"].value, expected(layers[0].logits, [[3, 2, 3, 0], [3] * 4]))
    assert_close(found[1]["cls"].value, expected(layers[1].logits, [[0, 3, 2, 3], [3, 3, 1, 3]]))
    assert found[0]["cls"].value.isfinite()


def test_groups_are_means_of_their_own() -> None:
    criterion = SetCriterion(SoftmaxClassification(BACKGROUND))
    few, many = predictions(1, 2), predictions(1, 5)

    def group(found: Predictions, assignment: Assignment) -> Supervised:
        return Supervised(
            criterion=criterion,
            layers=[found],
            targets=targets([[1]]),
            assignments=[assignment],
            num_boxes=Count(torch.tensor(1.0, dtype=torch.float64)),
        )

    ((one,), (other,)) = measure([group(few, pairs((0, 1, 0))), group(many, pairs())])
    assert_close(one["cls"].value, expected(few.logits, [[3, 1]]))
    assert_close(other["cls"].value, expected(many.logits, [[3] * 5]))


def test_without_objects_all_is_background() -> None:
    found = predictions(1, 3)
    criterion = SetCriterion(SoftmaxClassification(BACKGROUND))
    losses = losses_of(
        criterion, found, targets([[]]), pairs(), Count(torch.tensor(1.0, dtype=torch.float64))
    )
    assert_close(losses["cls"].value, F.cross_entropy(found.logits[0], torch.tensor([K] * 3)))
    losses["cls"].value.backward()
    assert found.logits.grad is not None
    assert found.logits.grad.all()


def test_a_teachers_box_counts_by_its_score() -> None:
    criterion = SetCriterion(SoftmaxClassification(BACKGROUND))
    found, assignment = predictions(1, 2), pairs((0, 0, 0))

    def gradient(weight: float) -> Tensor:
        losses = losses_of(
            criterion,
            found,
            targets([[1]], weight),
            assignment,
            Count(torch.tensor(1.0, dtype=torch.float64)),
        )
        return torch.autograd.grad(losses["cls"].value, found.logits)[0][0]

    assert_close(gradient(0.25)[0], gradient(1.0)[0] / 4)
    assert_close(gradient(0.25)[1], gradient(1.0)[1])


def test_a_federated_loss_is_for_sigmoids() -> None:
    with pytest.raises(ValueError, match="a softmax cannot leave classes out"):
        FederatedClassification(SoftmaxClassification(), [1] * K)
