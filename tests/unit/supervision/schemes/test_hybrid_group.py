"""Further query groups: repeated targets (H-DETR), and groups matched one to one (Group DETR)."""

from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch
from scoring import score
from torch import Tensor
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.loss_terms import Losses
from codetr.models.transformers import QueryTable
from codetr.structures import Batch, Decoded, Images, Predictions, Queries, QueryGroup, Targets
from codetr.supervision.assigners import HungarianMatcher
from codetr.supervision.criteria import FocalClassification, SetCriterion
from codetr.supervision.schemes import Group, Hybrid, Scheme, Start
from codetr.supervision.schemes.hybrid import repeated

CLASSES, QUERIES, DIM = 3, 12, 4
COUNTS = (2, 1)


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
            labels=torch.arange(count),
            weights=torch.ones(count, dtype=torch.float64),
            size=torch.tensor([40.0, 30.0], dtype=torch.float64),
        )
        for count in COUNTS
    )
    return Batch(images=images, targets=targets)


def predictions() -> Predictions:
    return Predictions(
        logits=torch.randn(2, QUERIES, CLASSES, dtype=torch.float64),
        boxes=torch.rand(2, QUERIES, 4, dtype=torch.float64) * 0.4 + 0.3,
    )


def queries() -> Queries:
    return Queries(content=torch.zeros(2, QUERIES, DIM), anchors=torch.zeros(2, QUERIES, 4))


def criterion() -> SetCriterion:
    return SetCriterion(FocalClassification(), cls=2.0)


def started(scheme: Scheme, data: Batch) -> Start:
    """What a scheme is handed: as many groups as it has tables."""
    own = tuple(queries() for _ in scheme.tables)
    return Start(detector=None, memory=None, main=queries(), own=own, batch=data)


def hybrid(repeats: int = 3, weight: float = 0.5) -> Hybrid:
    return Hybrid(
        HungarianMatcher(), criterion(), QueryTable(QUERIES, DIM, skip=7), repeats, weight
    )


def test_targets_are_repeated_list_by_list() -> None:
    data = batch()
    made = repeated(data.targets, 3)
    for own, copies in zip(data.targets, made, strict=True):
        assert copies.labels.tolist() == own.labels.tolist() * 3
        assert torch.equal(copies.boxes, torch.cat([own.boxes] * 3))
        assert len(copies.weights) == 3 * len(own)
        assert torch.equal(copies.size, own.size)


def test_the_group_takes_the_queries_after_the_main_ones_and_sees_nobody() -> None:
    scheme = hybrid()
    start = started(scheme, batch())
    (group,) = scheme.propose(start).groups
    assert list(scheme.tables) == [scheme.queries]
    assert group.queries is start.own[0]
    assert scheme.queries.skip == 7
    assert (group.name, group.sees, group.blocked) == ("hybrid", (), None)
    assert [len(t) for t in group.targets] == [6, 3]


def naive(
    layer: Predictions, targets: Sequence[Targets], copies: int, total: int
) -> dict[str, Tensor]:
    """Losses of one layer, query by query, by the matching of repeated targets."""
    matcher, made = HungarianMatcher(), repeated(targets, copies)
    (pairs,) = matcher([layer], made)
    assert len(pairs) == total
    sums = {name: torch.zeros((), dtype=torch.float64) for name in ("cls", "bbox")}
    offsets = [0, len(made[0])]
    owner = {
        (b, q): t - offsets[b]
        for b, q, t in zip(
            *(v.tolist() for v in (pairs.image, pairs.query, pairs.target)), strict=True
        )
    }
    for b in range(2):
        for q in range(QUERIES):
            target = owner.get((b, q))
            for k in range(CLASSES):
                p = layer.logits[b, q, k].sigmoid()
                if target is not None and made[b].labels[target] == k:
                    sums["cls"] += -0.25 * (1 - p) ** 2 * p.log()
                else:
                    sums["cls"] += -0.75 * p**2 * (1 - p).log()
            if target is not None:
                sums["bbox"] += (layer.boxes[b, q] - made[b].boxes[target]).abs().sum()
    return {name: value / total for name, value in sums.items()}


def check_layer(losses: Losses, place: str, expected: dict[str, Tensor], weight: float) -> None:
    for name, factor in (("cls", 2.0), ("bbox", 5.0)):
        assert_close(losses[f"{place}/{name}"].value, expected[name])
        assert losses[f"{place}/{name}"].weight == pytest.approx(factor * weight)


def test_hybrid_losses_equal_a_naive_loop() -> None:
    data, scheme, layers = batch(), hybrid(), (predictions(), predictions())
    group = QueryGroup(name="hybrid", queries=queries(), targets=repeated(data.targets, 3))
    losses = score(scheme, {"hybrid": Decoded(layers=layers, group=group)}, data)
    assert set(losses) == {f"layer{i}/{n}" for i in (0, 1) for n in ("cls", "bbox", "giou")}
    for i, layer in enumerate(layers):
        check_layer(losses, f"layer{i}", naive(layer, data.targets, 3, 9), 0.5)


def test_every_target_has_as_many_queries_as_copies() -> None:
    data, scheme, layer = batch(), hybrid(), predictions()
    made = repeated(data.targets, 3)
    (pairs,) = scheme.matcher([layer], made)
    assert pairs.query[pairs.image == 0].unique().numel() == 6
    assert (pairs.target[pairs.image == 0] % 2).bincount().tolist() == [3, 3]


def test_tables_are_held_once_and_stay_the_schemes_own_in_a_copy() -> None:
    for scheme in (hybrid(), group()):
        copy = deepcopy(scheme)
        held = {id(p) for p in copy.parameters()}
        assert all(id(p) in held for table in copy.tables for p in table.parameters())
    assert set(hybrid().state_dict()) == {"queries.content"}
    assert set(group().state_dict()) == {"tables.0.content", "tables.1.content"}


def group(groups: int = 3) -> Group:
    return Group(HungarianMatcher(), criterion(), lambda: QueryTable(QUERIES, DIM), groups, 0.5)


def test_groups_have_their_own_rows_and_the_same_proposals() -> None:
    scheme = group()
    start = started(scheme, batch())
    made = scheme.propose(start).groups
    assert all(g.queries is own for g, own in zip(made, start.own, strict=True))
    assert [g.name for g in made] == ["group1", "group2"]
    assert all(g.sees == () and g.targets == () for g in made)
    first, second = scheme.tables
    assert first.skip == second.skip == 0
    assert not torch.equal(first.content, second.content)


def test_group_losses_are_the_mean_over_groups_with_the_weight_of_all() -> None:
    data, scheme = batch(), group()
    answers = {name: (predictions(), predictions()) for name in ("group1", "group2")}
    decoded = {
        name: Decoded(layers=layers, group=QueryGroup(name=name, queries=queries()))
        for name, layers in answers.items()
    }
    losses = score(scheme, decoded, data)
    for i in range(2):
        each = [naive(layers[i], data.targets, 1, 3) for layers in answers.values()]
        mean = {name: (each[0][name] + each[1][name]) / 2 for name in ("cls", "bbox")}
        check_layer(losses, f"layer{i}", mean, 0.5 * 2)


def test_bad_numbers_are_named() -> None:
    with pytest.raises(UserError, match="repeats=0"):
        hybrid(repeats=0)
    with pytest.raises(UserError, match="groups=1"):
        group(1)
    with pytest.raises(UserError, match="a table of 0 further queries"):
        QueryTable(0)
    with pytest.raises(UserError, match="copies of the main one"):
        Group(HungarianMatcher(), criterion(), lambda: QueryTable(3, DIM, content=False), 3)
