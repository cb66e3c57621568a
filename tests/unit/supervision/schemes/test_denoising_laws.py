"""Laws of contrastive denoising that need no recorded numbers."""

from dataclasses import replace

import pytest
import torch
from scoring import score
from torch.testing import assert_close

from codetr.boxes import cxcywh_to_xyxy
from codetr.loss_terms import total_loss
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Decoded, Images, Memory, Predictions, QueryGroup, Targets
from codetr.supervision.criteria import QualityClassification, SetCriterion
from codetr.supervision.schemes import Denoising, Start
from codetr.supervision.schemes.denoising import GROUP

CLASSES, DIM = 7, 4


def scheme(queries: int = 12, label_noise: float = 0.5, box_noise: float = 1.0) -> Denoising:
    criterion = SetCriterion(QualityClassification())
    return Denoising(criterion, CLASSES, DIM, queries, label_noise, box_noise).double()


def batch(*counts: int) -> Batch:
    sizes = torch.tensor([[16, 16]] * len(counts))
    images = Images(
        pixels=torch.zeros(len(counts), 3, 16, 16),
        padding=torch.zeros(len(counts), 16, 16, dtype=torch.bool),
        sizes=sizes,
        padded_sizes=sizes,
    )
    targets = tuple(
        Targets(
            boxes=torch.rand(n, 4, dtype=torch.float64) * 0.2 + 0.4,
            labels=torch.randint(CLASSES, (n,)),
            weights=torch.ones(n),
            size=torch.tensor([16.0, 16.0]),
        )
        for n in counts
    )
    return Batch(images=images, targets=targets)


def memory(images: int) -> Memory:
    return Memory(
        tokens=torch.zeros(images, 1, DIM),
        padding=torch.zeros(images, 1, dtype=torch.bool),
        shapes=((1, 1),),
        strides=(8,),
        valid_ratios=torch.ones(images, 1, 2, dtype=torch.float64),
    )


def start(source: Memory, data: Batch) -> Start:
    return Start(detector=None, memory=source, main=None, own=(), batch=data)


def proposed(part: Denoising, data: Batch) -> QueryGroup:
    (group,) = part.propose(start(memory(len(data)), data)).groups
    return group


@pytest.mark.parametrize(
    ("queries", "counts", "length"),
    [(12, (3, 1), 24), (12, (5, 0), 20), (4, (6, 2), 12), (1, (1, 1), 2)],
)
def test_number_of_queries(queries: int, counts: tuple[int, ...], length: int) -> None:
    """max(1, queries // n) groups of n positive and n negative slots."""
    group = proposed(scheme(queries), batch(*counts))
    assert len(group) == length
    assert len(group.assignment) == length // (2 * max(counts)) * sum(counts)
    assert group.sees == (MAIN,)
    assert group.queries.anchors.dtype == torch.float64


def test_without_noise_positives_are_the_ground_truth() -> None:
    data = batch(3, 2)
    part = scheme(label_noise=0.0, box_noise=0.0)
    group = proposed(part, data)
    assignment = group.assignment
    truth = torch.cat([t.boxes for t in data.targets])
    labels = torch.cat([t.labels for t in data.targets])
    place = (assignment.image, assignment.query)
    assert_close(group.queries.anchors[place], truth[assignment.target])
    assert_close(group.queries.content[place], part.label_embedding(labels[assignment.target]))


def test_sides_move_up_to_half_the_box_and_those_of_negatives_once_to_twice_that() -> None:
    data = batch(1)
    box = torch.tensor([[0.5, 0.5, 0.1, 0.2]], dtype=torch.float64)
    data = replace(data, targets=(replace(data.targets[0], boxes=box),))
    anchors = proposed(scheme(500, box_noise=0.8), data).queries.anchors[0].view(-1, 2, 4)
    moves = (cxcywh_to_xyxy(anchors) - cxcywh_to_xyxy(box)).abs() / (box[:, 2:].repeat(1, 2) / 2)
    upright = (anchors[..., 2:] > 2e-3).all(-1)  # where sides have crossed the size is clamped
    positive, negative = (moves[:, i][upright[:, i]] / 0.8 for i in (0, 1))
    assert len(positive) == 500
    assert len(negative) > 100
    assert 0.9 < positive.max() <= 1 + 1e-9
    assert positive.min() < 0.1
    assert 1 - 1e-9 <= negative.min() < 1.1
    assert 1.9 < negative.max() <= 2 + 1e-9


def test_unused_slots_are_empty_queries_in_the_middle() -> None:
    group = proposed(scheme(6), batch(3, 1))
    unused = torch.tensor([1, 2, 4, 5])
    assert not group.queries.content[1, unused].any()
    assert_close(group.queries.anchors[1, unused], torch.full((4, 4), 0.5, dtype=torch.float64))


def test_labels_are_redrawn_with_half_the_given_probability() -> None:
    part = scheme(2000, label_noise=0.5)
    data = batch(1)
    group = proposed(part, data)
    kept = part.label_embedding(data.targets[0].labels)
    share = (group.queries.content[0] == kept).all(-1).double().mean().item()
    assert share == pytest.approx(1 - 0.25 * (CLASSES - 1) / CLASSES, abs=0.03)


def test_groups_do_not_see_each_other() -> None:
    group = proposed(scheme(6), batch(2))
    index = torch.arange(len(group)) // 4
    assert len(group) == 12
    assert torch.equal(group.blocked, index[:, None] != index)


def test_no_box_at_all_makes_an_empty_group_with_losses_and_gradients_of_zero() -> None:
    part, data = scheme(), batch(0, 0)
    group = proposed(part, data)
    assert len(group) == 0
    found = Predictions(
        logits=group.queries.content @ torch.ones(DIM, CLASSES, dtype=torch.float64),
        boxes=group.queries.content[..., :4],
    )
    losses = score(part, {GROUP: Decoded(layers=(found, found), group=group)}, data)
    assert set(losses) == {f"layer{i}/{n}" for i in (0, 1) for n in ("cls", "bbox", "giou")}
    loss = total_loss(losses)
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(
        part.label_embedding.weight.grad, torch.zeros(CLASSES, DIM, dtype=torch.float64)
    )


def test_score_measures_the_known_pairs_on_every_layer() -> None:
    part, data = scheme(), batch(3, 2)
    group = proposed(part, data)
    anchors = group.queries.anchors
    truth = torch.cat([t.boxes for t in data.targets])
    perfect = anchors.clone()
    pairs = group.assignment
    perfect[pairs.image, pairs.query] = truth[pairs.target]
    logits = torch.zeros(*anchors.shape[:2], CLASSES, dtype=torch.float64)
    layers = tuple(Predictions(logits=logits, boxes=boxes) for boxes in (anchors, perfect))
    losses = score(part, {GROUP: Decoded(layers=layers, group=group)}, data)
    assert set(losses) == {f"layer{i}/{n}" for i in (0, 1) for n in ("cls", "bbox", "giou")}
    assert losses["layer1/bbox"].value.item() == pytest.approx(0, abs=1e-12)
    distance = (anchors[pairs.image, pairs.query] - truth[pairs.target]).abs().sum()
    assert losses["layer0/bbox"].value.item() == pytest.approx(distance.item() / len(pairs))
