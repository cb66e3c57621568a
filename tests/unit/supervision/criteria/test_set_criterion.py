"""The set criterion against a loop over queries, and the laws of deep supervision."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from scoring import losses_of
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from codetr.loss_terms import Count, Losses, total_loss
from codetr.structures import Assignment, Predictions, Targets
from codetr.supervision.criteria import (
    FederatedClassification,
    FocalClassification,
    QualityClassification,
    SetCriterion,
    Supervised,
    by_layer,
    measure,
    supervised,
)
from codetr.supervision.criteria.class_losses import Classification
from codetr.supervision.overlaps import RelativeGiou

DOUBLE = torch.float64
CLASSES, QUERIES = 3, 5
EPS = torch.finfo(DOUBLE).eps


def boxes(*shape: int) -> Tensor:
    centre = torch.rand(*shape, 2, dtype=DOUBLE) * 0.4 + 0.3
    return torch.cat([centre, torch.rand(*shape, 2, dtype=DOUBLE) * 0.3 + 0.2], dim=-1)


def predictions() -> Predictions:
    return Predictions(
        logits=torch.randn(2, QUERIES, CLASSES, dtype=DOUBLE, requires_grad=True),
        boxes=boxes(2, QUERIES).requires_grad_(),
    )


def targets(counts: tuple[int, int] = (2, 3), weighted: bool = False) -> tuple[Targets, ...]:
    return tuple(
        Targets(
            boxes=boxes(count),
            labels=torch.randint(CLASSES, (count,)),
            weights=torch.rand(count, dtype=DOUBLE) if weighted else torch.ones(count).double(),
            size=torch.tensor([80.0, 50.0 + 20 * image], dtype=DOUBLE),
        )
        for image, count in enumerate(counts)
    )


def pairs(*triples: tuple[int, int, int]) -> Assignment:
    columns = torch.tensor(triples, dtype=torch.int64).view(-1, 3).T
    return Assignment(image=columns[0], query=columns[1], target=columns[2])


MATCHED = ((0, 4, 1), (0, 0, 0), (1, 2, 4), (1, 1, 2), (1, 3, 3))


def entropy(p: float, t: float) -> float:
    return -t * math.log(p) - (1 - t) * math.log(1 - p)


def looped(
    found: Predictions, truth: tuple[Targets, ...], quality: bool, num_boxes: float
) -> dict[str, float]:
    """Query by query and class by class."""
    everything = [(t, n) for t in truth for n in range(len(t))]
    sums = {"cls": 0.0, "bbox": 0.0, "giou": 0.0}
    for b in range(2):
        for q in range(QUERIES):
            match = next((k for i, j, k in MATCHED if (i, j) == (b, q)), None)
            wanted = [0.0] * CLASSES
            weight = 1.0
            if match is not None:
                target, n = everything[match]
                weight = target.weights[n].item()
                corners = [
                    box_convert(box[None], "cxcywh", "xyxy")
                    for box in (found.boxes[b, q].detach(), target.boxes[n])
                ]
                scale = target.size.repeat(2)
                giou = generalized_box_iou(*(c * scale for c in corners)).item()
                sums["giou"] += weight * (1 - giou)
                distance = (found.boxes[b, q] - target.boxes[n]).detach().abs().sum().item()
                sums["bbox"] += weight * distance
                wanted[target.labels[n]] = box_iou(*corners).item() if quality else 1.0
            for k in range(CLASSES):
                p, t = found.logits[b, q, k].detach().sigmoid().item(), wanted[k]
                balance = 1.0 if quality else (0.25 if t else 0.75)
                sums["cls"] += weight * balance * abs(t - p) ** 2 * entropy(p, t)
    return {name: value / num_boxes for name, value in sums.items()}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("quality", [False, True])
def test_equals_a_loop_over_queries(quality: bool, weighted: bool) -> None:
    classification = QualityClassification() if quality else FocalClassification()
    criterion = SetCriterion(classification, cls=1.5, l1=5.0, giou=2.0)
    found, truth = predictions(), targets(weighted=weighted)
    losses = losses_of(criterion, found, truth, pairs(*MATCHED), Count(torch.tensor(4.0)))
    expected = looped(found, truth, quality, 4.0)
    for name, value in expected.items():
        assert losses[name].value.item() == pytest.approx(value, rel=1e-9), name
    assert {name: term.weight for name, term in losses.items()} == {
        "cls": 1.5,
        "bbox": 5.0,
        "giou": 2.0,
    }


def test_the_order_of_pairs_does_not_matter() -> None:
    criterion, found, truth = SetCriterion(QualityClassification()), predictions(), targets()
    one = losses_of(criterion, found, truth, pairs(*MATCHED), Count(torch.tensor(5.0)))
    other = losses_of(criterion, found, truth, pairs(*reversed(MATCHED)), Count(torch.tensor(5.0)))
    assert_close(total_loss(one), total_loss(other))


def test_giou_is_measured_in_pixels() -> None:
    """Overlaps bound their denominators by 1e-6: small relative boxes would be below that."""
    tiny = torch.tensor([[0.5, 0.5, 2e-3, 2e-4]], dtype=DOUBLE)  # 2 px x 0.2 px
    truth = Targets(
        boxes=tiny,
        labels=torch.zeros(1, dtype=torch.int64),
        weights=torch.ones(1),
        size=torch.tensor([1000.0, 1000.0]),
    )
    found = Predictions(logits=torch.zeros(1, 1, CLASSES, dtype=DOUBLE), boxes=tiny[None])
    losses = losses_of(
        SetCriterion(FocalClassification()), found, [truth], pairs((0, 0, 0)), Count(torch.ones(()))
    )
    assert losses["giou"].value.item() == pytest.approx(0, abs=1e-9)


def test_quality_is_a_constant_target() -> None:
    """The class loss must not push boxes towards or away from their targets."""
    criterion, found = SetCriterion(QualityClassification()), predictions()
    losses = losses_of(criterion, found, targets(), pairs(*MATCHED), Count(torch.tensor(5.0)))
    grads = torch.autograd.grad(losses["cls"].value, [found.logits, found.boxes], allow_unused=True)
    assert grads[0].abs().min() > 0
    assert grads[1] is None


def test_a_teachers_box_counts_by_its_score() -> None:
    """With weight 0 it is as if its query were not there."""
    criterion, found = SetCriterion(FocalClassification()), predictions()
    truth = targets(weighted=True)
    truth[0].weights[1] = 0.0  # matched by query 4 of image 0
    losses = losses_of(criterion, found, truth, pairs(*MATCHED), Count(torch.tensor(5.0)))
    logits, coordinates = torch.autograd.grad(total_loss(losses), [found.logits, found.boxes])
    assert not logits[0, 4].any()
    assert not coordinates[0, 4].any()
    assert logits[0, 0].all()


@pytest.mark.parametrize("classification", [FocalClassification(), QualityClassification()])
def test_no_targets_leave_background_and_a_graph(classification: Classification) -> None:
    found, truth = predictions(), targets((0, 0))
    assignment = pairs()
    num_boxes = Count.of(len(assignment), found.boxes)
    assert num_boxes.divisor() == pytest.approx(1)
    losses = losses_of(SetCriterion(classification), found, truth, assignment, num_boxes)
    assert losses["cls"].value > 0
    assert losses["bbox"].value == losses["giou"].value == 0
    total_loss(losses).backward()
    assert found.logits.grad.all()
    assert found.boxes.grad is not None


def test_half_precision_logits_are_measured_in_the_precision_of_the_boxes() -> None:
    criterion, found = SetCriterion(QualityClassification()), predictions()
    rough = Predictions(logits=found.logits.detach().bfloat16(), boxes=found.boxes)
    same = Predictions(logits=rough.logits.double(), boxes=found.boxes)
    truth, count = targets(), Count(torch.tensor(5.0))
    losses = [
        losses_of(criterion, p, truth, pairs(*MATCHED), count)["cls"].value for p in (rough, same)
    ]
    assert losses[0].dtype == DOUBLE
    assert_close(*losses)


def test_pairs_are_counted_on_all_processes_and_at_least_once() -> None:
    count = Count.of(len(MATCHED), torch.zeros((), dtype=DOUBLE))
    assert count.shared
    assert (count.number.item(), count.number.dtype, count.minimum) == (5, DOUBLE, 1)


def test_supervision_of_layers_measures_each_under_its_own_assignment() -> None:
    criterion, truth = SetCriterion(QualityClassification()), targets()
    layers = [predictions(), predictions()]
    turned = tuple((b, (q + 1) % QUERIES, t) for b, q, t in MATCHED)
    assignments = [pairs(*MATCHED), pairs(*turned)]
    losses = by_layer(measure([supervised(criterion, layers, truth, assignments)])[0])
    assert list(losses) == [f"layer{i}/{n}" for i in (0, 1) for n in ("cls", "bbox", "giou")]
    for i, (layer, assignment) in enumerate(zip(layers, assignments, strict=True)):
        alone = losses_of(
            criterion, layer, truth, assignment, Count(torch.tensor(5.0, dtype=DOUBLE))
        )
        for name, term in alone.items():
            assert_close(losses[f"layer{i}/{name}"].value, term.value)


def values(layers: Sequence[Losses]) -> list[dict[str, Tensor]]:
    return [{name: term.value for name, term in layer.items()} for layer in layers]


@pytest.mark.parametrize("kind", [FocalClassification, QualityClassification])
def test_groups_together_are_measured_as_each_by_itself(
    kind: type[FocalClassification | QualityClassification],
) -> None:
    """With their own weights, numbers of queries, targets, pairs, normalisers and backgrounds."""
    few, many, layers = targets((1, 0)), targets((2, 3), weighted=True), 3
    wide = [
        Predictions(
            logits=torch.randn(2, QUERIES + 2, CLASSES, dtype=DOUBLE, requires_grad=True),
            boxes=boxes(2, QUERIES + 2).requires_grad_(),
        )
        for _ in range(layers)
    ]
    groups = [
        Supervised(
            criterion=SetCriterion(kind()),
            layers=[predictions() for _ in range(layers)],
            targets=few,
            assignments=[pairs((0, i, 0)) for i in range(layers)],
            num_boxes=Count(torch.tensor(1.0)),
        ),
        Supervised(
            criterion=SetCriterion(kind(), cls=1.5, l1=3.0, giou=0.5),
            layers=wide,
            targets=many,
            assignments=[pairs(*MATCHED), pairs((0, 6, 1)), pairs()],
            num_boxes=Count(torch.tensor(4.0)),
            background=0.3,
        ),
    ]
    assert groups[0].kind == groups[1].kind
    together = measure(groups)
    for group, found in zip(groups, together, strict=True):
        (alone,) = measure([group])
        assert_close(values(found), values(alone))
        leaves = [t for layer in group.layers for t in (layer.logits, layer.boxes)]
        grads = [
            torch.autograd.grad(sum(map(total_loss, own)), leaves, retain_graph=True)
            for own in (found, alone)
        ]
        assert_close(*grads)
        for i, own in enumerate(found):
            parts = group.layers[i], group.targets, group.assignments[i], group.num_boxes
            assert_close(
                values([own]), values([losses_of(group.criterion, *parts, group.background)])
            )


def test_groups_of_other_kinds_are_computed_by_themselves() -> None:
    """Other losses, other overlaps, other depths."""
    criteria = [
        SetCriterion(FocalClassification(alpha=0.5)),
        SetCriterion(QualityClassification()),
        SetCriterion(FocalClassification()),
        SetCriterion(FocalClassification(), overlap=RelativeGiou()),
        SetCriterion(FederatedClassification(FocalClassification(), [1] * CLASSES, 1)),
    ]
    truth, depths = targets(), (1, 2)
    groups = [
        supervised(c, [predictions()] * depth, truth, [pairs(*MATCHED)] * depth)
        for c in criteria
        for depth in depths
    ]
    assert len({group.kind for group in groups}) == len(groups)
    found = measure(groups)
    assert [len(layers) for layers in found] == [*depths] * len(criteria)
    for group, layers in zip(groups[:8], found, strict=False):
        assert_close(values(layers), values(measure([group])[0]))


def test_a_group_is_not_judged_by_the_classes_of_another() -> None:
    """Of one criterion, as two teachers have it: a federated loss is for the classes of a group."""
    criterion = SetCriterion(FederatedClassification(FocalClassification(), [1] * CLASSES, 1))
    groups = []
    for label in (0, 1):
        truth = [replace(t, labels=torch.full_like(t.labels, label)) for t in targets()]
        groups.append(supervised(criterion, [predictions()], truth, [pairs(*MATCHED)]))
    for label, (losses,) in enumerate(measure(groups)):
        logits = groups[label].layers[0].logits
        (gradient,) = torch.autograd.grad(losses["cls"].value, logits)
        assert gradient.any(dim=0).any(dim=0).tolist() == [k == label for k in range(CLASSES)]
