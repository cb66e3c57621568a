"""Teachers' boxes as supervision of the main queries."""

from dataclasses import replace

import pytest
import torch
from scoring import score
from torch import Tensor
from torch.testing import assert_close

from codetr.boxes import cxcywh_to_xyxy, paired_giou
from codetr.errors import UserError
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Decoded, Images, Predictions, Queries, QueryGroup, Targets
from codetr.supervision.assigners import HungarianMatcher
from codetr.supervision.criteria import FocalClassification, SetCriterion
from codetr.supervision.schemes import OneToOne, Teacher

CLASSES, QUERIES = 3, 6
SIZE = torch.tensor([40.0, 30.0], dtype=torch.float64)


def predictions() -> Predictions:
    return Predictions(
        logits=torch.randn(2, QUERIES, CLASSES, dtype=torch.float64),
        boxes=torch.rand(2, QUERIES, 4, dtype=torch.float64) * 0.4 + 0.3,
    )


def boxes(count: int, scored: bool) -> Targets:
    ones = torch.ones(count, dtype=torch.float64)
    return Targets(
        boxes=torch.rand(count, 4, dtype=torch.float64) * 0.4 + 0.3,
        labels=torch.randint(CLASSES, (count,)),
        weights=torch.rand_like(ones) if scored else ones,
        size=SIZE,
    )


def batch(teachers: int, counts: tuple[int, int] = (3, 2), scored: bool = True) -> Batch:
    sizes = torch.tensor([[30, 40], [30, 40]])
    images = Images(
        pixels=torch.zeros(2, 3, 30, 40),
        padding=torch.zeros(2, 30, 40, dtype=torch.bool),
        sizes=sizes,
        padded_sizes=sizes,
    )
    found = tuple(tuple(boxes(n, scored) for n in counts) for _ in range(teachers))
    return Batch(images=images, targets=tuple(boxes(n, False) for n in (2, 1)), teachers=found)


def decoded(proposals: Predictions | None = None) -> dict[str, Decoded]:
    queries = Queries(
        content=torch.zeros(2, QUERIES, 4), anchors=torch.zeros(2, QUERIES, 4), proposals=proposals
    )
    group = QueryGroup(name=MAIN, queries=queries)
    return {MAIN: Decoded(layers=(predictions(), predictions()), group=group)}


def scheme(background: float = 0.5, weight: float = 1.0, labels: str = "classes") -> Teacher:
    criterion = SetCriterion(FocalClassification(), cls=2.0)
    return Teacher(HungarianMatcher(), criterion, labels, background, weight)


def naive(layer: Predictions, targets: tuple[Targets, ...]) -> dict[str, Tensor]:
    """Focal loss of every query by its weight, box losses of every pair by its score."""
    sums = {n: torch.zeros((), dtype=torch.float64) for n in ("cls", "bbox", "giou")}
    for b, own in enumerate(targets):
        one = Predictions(logits=layer.logits[b : b + 1], boxes=layer.boxes[b : b + 1])
        (pairs,) = HungarianMatcher()([one], [own])
        owner = dict(zip(pairs.query.tolist(), pairs.target.tolist(), strict=True))
        for q in range(QUERIES):
            target = owner.get(q)
            score = 0.5 if target is None else own.weights[target]
            for k in range(CLASSES):
                p = layer.logits[b, q, k].sigmoid()
                right = target is not None and own.labels[target] == k
                loss = 0.25 * (1 - p) ** 2 * -p.log() if right else 0.75 * p**2 * -(1 - p).log()
                sums["cls"] += score * loss
            if target is not None:
                wanted, found = own.boxes[target], layer.boxes[b, q]
                sums["bbox"] += score * (found - wanted).abs().sum()
                corners = [cxcywh_to_xyxy(v[None]) * SIZE.repeat(2) for v in (found, wanted)]
                sums["giou"] += score * (1 - paired_giou(*corners)[0])
    return {name: value / sum(len(t) for t in targets) for name, value in sums.items()}


def test_losses_equal_a_naive_loop_for_every_teacher() -> None:
    data, answer = batch(2), decoded()
    losses = score(scheme(weight=0.5), answer, data)
    assert len(losses) == 2 * 2 * 3
    for t, targets in enumerate(data.teachers):
        for i, layer in enumerate(answer[MAIN].layers):
            for name, value in naive(layer, targets).items():
                term = losses[f"{t}/layer{i}/{name}"]
                assert_close(term.value, value)
                assert term.weight == {"cls": 2.0, "bbox": 5.0, "giou": 2.0}[name] * 0.5


def test_gradients_equal_those_of_the_official_giou_loss() -> None:
    """1 - score * GIoU differs from score * (1 - GIoU) by a constant."""
    data, answer = batch(1), decoded()
    layer = answer[MAIN].layers[0]
    layer.boxes.requires_grad_()
    ours = score(scheme(), answer, data)["0/layer0/giou"].value
    (pairs,) = HungarianMatcher()([layer], data.teachers[0])
    targets = torch.cat([t.boxes for t in data.teachers[0]])[pairs.target]
    scores = torch.cat([t.weights for t in data.teachers[0]])[pairs.target]
    size = SIZE.repeat(2)
    found = cxcywh_to_xyxy(layer.boxes[pairs.image, pairs.query]) * size
    official = (1 - scores * paired_giou(found, cxcywh_to_xyxy(targets) * size)).mean()
    assert_close(official - ours, (1 - scores).mean())
    mine, theirs = (torch.autograd.grad(v, layer.boxes)[0] for v in (ours, official))
    assert_close(mine, theirs)


def test_a_perfect_teacher_with_full_background_is_the_ground_truth() -> None:
    data = batch(1, scored=False)
    answer = decoded(predictions())
    same = replace(data, targets=data.teachers[0])
    plain = OneToOne(HungarianMatcher(), SetCriterion(FocalClassification(), cls=2.0))
    expected = score(plain, answer, same)
    losses = score(scheme(background=1.0), answer, data)
    assert set(losses) == {f"0/{name}" for name in expected}
    for name, term in expected.items():
        assert_close(losses[f"0/{name}"].value, term.value)


@pytest.mark.parametrize("labels", ["classes", "objectness"])
def test_proposals_do_not_look_at_scores(labels: str) -> None:
    data, answer = batch(1), decoded(predictions())
    other = tuple(replace(t, weights=t.weights * 0.1) for t in data.teachers[0])
    first = score(scheme(labels=labels), answer, data)
    second = score(scheme(labels=labels), answer, replace(data, teachers=(other,)))
    for name in ("cls", "bbox", "giou"):
        assert_close(first[f"0/encoder/{name}"].value, second[f"0/encoder/{name}"].value)
    assert_close(first["0/layer0/bbox"].value * 0.1, second["0/layer0/bbox"].value)


def test_a_teacher_that_finds_nothing_gives_finite_losses() -> None:
    losses = score(scheme(), decoded(predictions()), batch(1, (0, 0)))
    assert all(term.value.isfinite() for term in losses.values())
    assert losses["0/layer1/bbox"].value == 0


def test_no_teachers_and_bad_weights_are_named() -> None:
    with pytest.raises(UserError, match=r"data\.teachers"):
        score(scheme(), decoded(), batch(0))
    with pytest.raises(UserError, match="weight=-1"):
        scheme(weight=-1)
