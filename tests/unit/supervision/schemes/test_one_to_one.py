"""The scheme that every DETR has: what it measures, on what, and under which names."""

import pytest
import torch
from scoring import losses_of, score
from torch.testing import assert_close

from codetr.loss_terms import Count
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Decoded, Images, Predictions, Queries, QueryGroup, Targets
from codetr.supervision.assigners import HungarianMatcher
from codetr.supervision.criteria import FocalClassification, SetCriterion
from codetr.supervision.schemes import OneToOne

CLASSES, QUERIES = 3, 6
TERMS = ("cls", "bbox", "giou")


def predictions() -> Predictions:
    boxes = torch.rand(2, QUERIES, 4, dtype=torch.float64) * 0.4 + 0.3
    return Predictions(logits=torch.randn(2, QUERIES, CLASSES, dtype=torch.float64), boxes=boxes)


def batch() -> Batch:
    sizes = torch.tensor([[30, 40], [30, 40]])
    images = Images(
        pixels=torch.zeros(2, 3, 30, 40),
        padding=torch.zeros(2, 30, 40, dtype=torch.bool),
        sizes=sizes,
        padded_sizes=sizes,
    )
    targets = tuple(
        Targets(
            boxes=torch.rand(count, 4, dtype=torch.float64) * 0.4 + 0.3,
            labels=torch.tensor([2, 1, 2][:count]),
            weights=torch.ones(count),
            size=torch.tensor([40.0, 30.0]),
        )
        for count in (3, 1)
    )
    return Batch(images=images, targets=targets)


def decoded(proposals: Predictions | None) -> dict[str, Decoded]:
    queries = Queries(
        content=torch.zeros(2, QUERIES, 4), anchors=torch.zeros(2, QUERIES, 4), proposals=proposals
    )
    layers = (predictions(), predictions())
    return {MAIN: Decoded(layers=layers, group=QueryGroup(name=MAIN, queries=queries))}


def scheme(labels: str = "classes") -> OneToOne:
    return OneToOne(HungarianMatcher(), SetCriterion(FocalClassification()), labels)


def test_proposes_nothing() -> None:
    proposal = scheme().propose(None)
    assert (proposal.groups, proposal.losses) == ((), {})


@pytest.mark.parametrize("two_stage", [True, False])
def test_every_layer_and_the_encoders_proposals_are_measured(two_stage: bool) -> None:
    losses = score(scheme(), decoded(predictions() if two_stage else None), batch())
    places = ["layer0", "layer1", "encoder"][: 2 + two_stage]
    assert set(losses) == {f"{place}/{term}" for place in places for term in TERMS}


def test_each_layer_is_matched_and_measured_by_itself() -> None:
    data, answers = batch(), decoded(None)
    losses = score(scheme(), answers, data)
    part = scheme()
    for i, layer in enumerate(answers[MAIN].layers):
        (assignment,) = part.matcher([layer], data.targets)
        alone = losses_of(
            part.criterion, layer, data.targets, assignment, Count(torch.tensor(4.0).double())
        )
        for name, term in alone.items():
            assert_close(losses[f"layer{i}/{name}"].value, term.value)


@pytest.mark.parametrize("labels", ["classes", "objectness"])
def test_proposals_learn_the_classes_or_that_there_is_something(labels: str) -> None:
    data = batch()
    boxes = torch.cat([data.targets[0].boxes, data.targets[0].boxes[:1]])
    other = torch.cat([data.targets[1].boxes] * 4)
    logits = torch.full((2, 4, CLASSES), -8.0, dtype=torch.float64)
    found = Predictions(logits=logits, boxes=torch.stack([boxes, other]))
    for b, n, label in ((0, 0, 2), (0, 1, 1), (0, 2, 2), (1, 0, 2)):
        found.logits[b, n, label if labels == "classes" else 0] = 8.0
    right = score(scheme(labels), decoded(found), data)
    wrong = score(scheme("objectness" if labels == "classes" else "classes"), decoded(found), data)
    assert right["encoder/cls"].value < 1e-3 < wrong["encoder/cls"].value
    assert right["encoder/bbox"].value < 1e-9


def test_the_batch_is_not_edited() -> None:
    data = batch()
    before = [t.labels.clone() for t in data.targets]
    score(scheme("objectness"), decoded(predictions()), data)
    assert all(torch.equal(t.labels, b) for t, b in zip(data.targets, before, strict=True))
