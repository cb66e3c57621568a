"""Query denoising: what its queries are made of, whom they see, and what is measured."""

import pytest
import torch
from scoring import score
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Decoded, Images, Predictions, QueryGroup, Targets
from codetr.supervision.criteria import FocalClassification, SetCriterion
from codetr.supervision.schemes import QueryDenoising
from codetr.supervision.schemes.query_denoising import GROUP, QueryNoise

CLASSES, DIM, GROUPS = 4, 8, 3


def scheme(**settings: float) -> QueryDenoising:
    torch.manual_seed(0)
    criterion = SetCriterion(FocalClassification(), cls=1.0)
    return QueryDenoising(criterion, CLASSES, DIM, GROUPS, **settings).double()


def targets(*counts: int) -> tuple[Targets, ...]:
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> torch.Tensor:
        return torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.3 + 0.3

    return tuple(
        Targets(
            boxes=draw(count),
            labels=torch.arange(count) % CLASSES,
            weights=torch.ones(count, dtype=torch.float64),
            size=torch.tensor([64.0, 48.0], dtype=torch.float64),
        )
        for count in counts
    )


def noise(images: int, slots: int, value: float = 0.5, flip: float = 1.0) -> QueryNoise:
    """No label redrawn and no box moved, unless told."""
    shape = (images, GROUPS, slots)
    return QueryNoise(
        flip=torch.full(shape, flip),
        labels=torch.full(shape, CLASSES - 1),
        shifts=torch.full((*shape, 4), value, dtype=torch.float64),
    )


def test_without_noise_queries_are_the_boxes_with_the_indicator() -> None:
    one, truth = scheme(), targets(2, 3)
    group = one.group(truth, noise(2, 3))
    assert len(group) == GROUPS * 3
    assert group.assignment is not None
    pairs = group.assignment
    boxes = torch.cat([t.boxes for t in truth])
    labels = torch.cat([t.labels for t in truth])
    assert len(pairs) == GROUPS * 5
    assert_close(group.queries.anchors[pairs.image, pairs.query], boxes[pairs.target])
    content = group.queries.content[pairs.image, pairs.query]
    assert_close(content[:, :-1], one.label_embedding(labels)[pairs.target])
    assert content[:, -1].unique().tolist() == [1.0]
    empty = group.queries.content[0, 2::3]
    assert not empty.any()
    assert_close(group.queries.anchors[0, 2::3], torch.full_like(empty[:, :4], 0.5))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_centre_moves_by_half_the_box_and_the_size_by_the_box(value: float) -> None:
    truth = targets(1)
    group = scheme(box_noise=0.4).group(truth, noise(1, 1, value))
    sign = 2 * value - 1
    x, y, w, h = truth[0].boxes[0]
    expected = torch.stack([x + sign * 0.2 * w, y + sign * 0.2 * h, w * (1 + sign * 0.4), h])
    expected[3] = h * (1 + sign * 0.4)
    assert_close(group.queries.anchors[0, 0], expected)


def test_moved_boxes_stay_in_the_unit_square() -> None:
    group = scheme(box_noise=20.0).group(targets(2), noise(1, 2, 1.0))
    assert_close(group.queries.anchors, torch.full_like(group.queries.anchors, 1 / 1.001))


def test_labels_are_redrawn_with_the_given_probability() -> None:
    one = scheme(label_noise=0.2)
    kept = one.group(targets(1), noise(1, 1, flip=0.2)).queries.content
    flipped = one.group(targets(1), noise(1, 1, flip=0.19)).queries.content
    assert_close(kept[0, 0, :-1], one.label_embedding.weight[0])
    assert_close(flipped[0, 0, :-1], one.label_embedding.weight[CLASSES - 1])
    drawn = one.draw(2, 50, torch.zeros(1, dtype=torch.float64))
    assert drawn.shifts.dtype == torch.float64
    assert 0 <= int(drawn.labels.min()) <= int(drawn.labels.max()) == CLASSES - 1


def test_groups_see_themselves_and_the_main_queries_alone() -> None:
    group = scheme().group(targets(2, 1), noise(2, 2))
    assert group.sees == (MAIN,)
    index = torch.arange(GROUPS * 2) // 2
    assert group.blocked is not None
    assert torch.equal(group.blocked, index[:, None] != index)


def answer(group: QueryGroup, queries: int) -> Decoded:
    images = group.queries.content.shape[0]
    generator = torch.Generator().manual_seed(queries)
    layer = Predictions(
        logits=torch.randn(images, queries, CLASSES, generator=generator, dtype=torch.float64),
        boxes=torch.rand(images, queries, 4, generator=generator, dtype=torch.float64),
    )
    return Decoded(layers=(layer, layer), group=group)


def batch(truth: tuple[Targets, ...]) -> Batch:
    sizes = torch.tensor([[48, 64]] * len(truth))
    images = Images(
        pixels=torch.zeros(len(truth), 3, 48, 64),
        padding=torch.zeros(len(truth), 48, 64, dtype=torch.bool),
        sizes=sizes,
        padded_sizes=sizes,
    )
    return Batch(images=images, targets=truth)


def test_slots_without_a_box_count_nothing() -> None:
    one, truth = scheme(), targets(1, 3)
    group = one.group(truth, noise(2, 3))
    decoded = {GROUP: answer(group, len(group)), MAIN: answer(group, 5)}
    before = score(one, decoded, batch(truth))
    for layer in decoded[GROUP].layers:
        layer.logits[0, 1::3] += 5
        layer.logits[0, 2::3] -= 3
    after = score(one, decoded, batch(truth))
    assert set(before) == {f"layer{i}/{name}" for i in (0, 1) for name in ("cls", "bbox", "giou")}
    for name, term in before.items():
        assert_close(after[name].value, term.value)
    decoded[GROUP].layers[0].logits[0, 0] += 1
    assert score(one, decoded, batch(truth))["layer0/cls"].value != before["layer0/cls"].value


def test_sums_are_divided_by_the_number_of_noised_boxes() -> None:
    one, truth = scheme(), targets(2, 1)
    group = one.group(truth, noise(2, 2))
    decoded = {GROUP: answer(group, len(group))}
    found = score(one, decoded, batch(truth))["layer0/bbox"].value
    pairs = group.assignment
    assert pairs is not None
    boxes = torch.cat([t.boxes for t in truth])[pairs.target]
    said = decoded[GROUP].layers[0].boxes[pairs.image, pairs.query]
    assert_close(found, (said - boxes).abs().sum() / (GROUPS * 3))


def test_a_number_of_groups_below_one_is_an_error() -> None:
    criterion = SetCriterion(FocalClassification(), cls=1.0)
    with pytest.raises(UserError, match="query_denoising"):
        QueryDenoising(criterion, CLASSES, DIM, groups=0)
