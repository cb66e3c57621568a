"""Assigners of anchors against loops written from their papers, and the sampler."""

import pytest
import torch
from torch import Tensor

from codetr.supervision.assigners.atss import AtssAssigner
from codetr.supervision.assigners.max_iou import IGNORED, NEGATIVE, MaxIouAssigner
from codetr.supervision.assigners.sampling import RandomSampler, ranked


def iou(a: Tensor, b: Tensor) -> float:
    ax1, ay1, ax2, ay2 = a.tolist()
    bx1, by1, bx2, by2 = b.tolist()
    shared = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    return shared / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared)


def centre(box: Tensor) -> tuple[float, float]:
    x1, y1, x2, y2 = box.tolist()
    return (x1 + x2) / 2, (y1 + y2) / 2


def grid_anchors(strides: tuple[int, ...], extent: int, side: float) -> tuple[Tensor, list[int]]:
    boxes, sizes = [], []
    for stride in strides:
        points = [(x, y) for y in range(0, extent, stride) for x in range(0, extent, stride)]
        half = side * stride / 2
        boxes += [[x - half, y - half, x + half, y + half] for x, y in points]
        sizes.append(len(points))
    return torch.tensor(boxes, dtype=torch.float64), sizes


def random_boxes(count: int, extent: float) -> Tensor:
    low = torch.rand(count, 2, dtype=torch.float64) * extent * 0.7
    size = 2 + torch.rand(count, 2, dtype=torch.float64) * extent * 0.5
    return torch.cat([low, low + size], dim=1)


def naive_max_iou(
    anchors: Tensor, boxes: Tensor, usable: list[bool], rule: MaxIouAssigner
) -> list[int]:
    table = [[iou(a, b) for b in boxes] for a in anchors]
    assigned = []
    for row, free in zip(table, usable, strict=True):
        best = max(row, default=0.0)
        if not free:
            assigned.append(IGNORED)
        elif row and best >= rule.positive:
            assigned.append(row.index(best))
        else:
            assigned.append(NEGATIVE if best < rule.negative else IGNORED)
    if rule.low_quality is not None:
        for box in range(len(boxes)):
            best = max((r[box] for r, free in zip(table, usable, strict=True) if free), default=-1)
            if best < rule.low_quality:
                continue
            for anchor, row in enumerate(table):
                if usable[anchor] and abs(row[box] - best) < 1e-12:
                    assigned[anchor] = box
    return assigned


@pytest.mark.parametrize("count", [0, 1, 6])
@pytest.mark.parametrize("low_quality", [None, 0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_max_iou_equals_loops(count, low_quality, seed) -> None:
    torch.manual_seed(seed)
    anchors, _ = grid_anchors((8, 16), extent=48, side=2)
    boxes = random_boxes(count, 48)
    usable = torch.rand(len(anchors)) < 0.8
    rule = MaxIouAssigner(positive=0.5, negative=0.3, low_quality=low_quality)
    expected = naive_max_iou(anchors, boxes, usable.tolist(), rule)
    assert rule(anchors, boxes, usable).tolist() == expected


def test_low_quality_takes_every_tie_and_later_boxes_win() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [50, 50, 60, 60]])
    small = torch.tensor([5.0, 2, 9, 6])  # inside both of the first two anchors: equal IoU
    rule = MaxIouAssigner(positive=0.9, negative=0.5, low_quality=0.1)
    assert rule(anchors, small[None]).tolist() == [0, 0, NEGATIVE]
    assert rule(anchors, torch.stack([small, small])).tolist() == [1, 1, NEGATIVE]
    strict = MaxIouAssigner(positive=0.9, negative=0.5)
    assert strict(anchors, small[None]).tolist() == [NEGATIVE] * 3


@pytest.mark.parametrize("pairs", [1, 40, 10**6])
def test_anchors_are_assigned_alike_however_many_are_compared_at_once(
    pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box's best anchors may lie in several chunks, and some chunks have none that is usable."""
    anchors, _ = grid_anchors((8, 8, 16), extent=48, side=2)  # every small anchor twice
    boxes = random_boxes(6, 48)
    usable = (torch.rand(len(anchors)) < 0.8) & (torch.arange(len(anchors)) > 12)
    rule = MaxIouAssigner(positive=0.5, negative=0.3, low_quality=0.2)
    monkeypatch.setattr("codetr.supervision.assigners.max_iou.PAIRS_AT_ONCE", pairs)
    assert rule(anchors, boxes, usable).tolist() == naive_max_iou(
        anchors, boxes, usable.tolist(), rule
    )


def naive_atss(
    anchors: Tensor, sizes: list[int], boxes: Tensor, usable: list[bool], per_level: int
) -> list[int]:
    assigned = [NEGATIVE if free else IGNORED for free in usable]
    best = [-1.0] * len(anchors)
    for number, box in enumerate(boxes):
        bx, by = centre(box)
        candidates, start = [], 0
        for size in sizes:
            level = [i for i in range(start, start + size) if usable[i]]
            level.sort(key=lambda i: (centre(anchors[i])[0] - bx) ** 2
                       + (centre(anchors[i])[1] - by) ** 2)  # fmt: skip
            candidates += level[:per_level]
            start += size
        values = torch.tensor([iou(anchors[i], box) for i in candidates], dtype=torch.float64)
        threshold = float(values.mean() + values.std()) if len(values) > 1 else float("nan")
        for index, value in zip(candidates, values.tolist(), strict=True):
            x, y = centre(anchors[index])
            x1, y1, x2, y2 = box.tolist()
            inside = min(x - x1, y - y1, x2 - x, y2 - y) > 0.01
            if inside and value >= threshold and value > best[index]:
                best[index], assigned[index] = value, number
    return assigned


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("seed", range(4))
def test_atss_equals_loops(count, seed) -> None:
    torch.manual_seed(seed)
    anchors, sizes = grid_anchors((4, 8, 32), extent=64, side=4)
    boxes = random_boxes(count, 64)
    usable = torch.rand(len(anchors)) < (0.9 if seed else 0.05)
    expected = naive_atss(anchors, sizes, boxes, usable.tolist(), per_level=5)
    found = AtssAssigner(per_level=5)(anchors, sizes, boxes, usable)
    assert found.tolist() == expected
    if seed and count > 1:
        assert any(index >= 0 for index in expected)


def test_atss_with_one_or_no_usable_anchor_has_no_positive() -> None:
    anchors, sizes = grid_anchors((8,), extent=32, side=4)
    boxes = random_boxes(2, 32)
    usable = torch.zeros(len(anchors), dtype=torch.bool)
    assert AtssAssigner()(anchors, sizes, boxes, usable).eq(IGNORED).all()
    usable[0] = True
    assert AtssAssigner()(anchors, sizes, boxes, usable).max() == NEGATIVE


def test_sampler_limits_positives_and_fills_with_negatives() -> None:
    assigned = torch.tensor([0, NEGATIVE, IGNORED, 1] * 10)
    (chosen,) = RandomSampler(size=12, positive_share=0.5)([assigned])
    assert len(chosen.positive) == 6
    assert len(chosen.negative) == 6
    assert assigned[chosen.positive].ge(0).all()
    assert assigned[chosen.negative].eq(NEGATIVE).all()
    for part in (chosen.positive, chosen.negative):
        assert part.diff().gt(0).all()
    (few,) = RandomSampler(size=12, positive_share=0.5)([assigned[:4]])
    assert few.index.tolist() == [0, 3, 1]


def test_sampler_is_random_and_repeatable() -> None:
    assigned = torch.full((1000,), NEGATIVE)
    sampler = RandomSampler(size=10, positive_share=0.5)
    torch.manual_seed(0)
    (first,), (second,) = sampler([assigned]), sampler([assigned])
    torch.manual_seed(0)
    (again,) = sampler([assigned])
    assert torch.equal(first.negative, again.negative)
    assert not torch.equal(first.negative, second.negative)


def test_a_batch_is_sampled_as_its_images_one_by_one() -> None:
    assigned = [torch.randint(-2, 3, (200,)) for _ in range(3)]
    sampler = RandomSampler(size=20, positive_share=0.3)
    torch.manual_seed(5)
    together = sampler(assigned)
    torch.manual_seed(5)
    for own, sample in zip(assigned, together, strict=True):
        (alone,) = sampler([own])
        assert torch.equal(sample.positive, alone.positive)
        assert torch.equal(sample.negative, alone.negative)
        assert (own[sample.positive] >= 0).all()
        assert (own[sample.negative] == NEGATIVE).all()
        assert len(sample.positive) == 6
        assert len(sample.negative) == 14


def test_ranks_are_places_among_true_entries() -> None:
    eligible = torch.rand(50) < 0.3
    places = eligible.nonzero()[:, 0]
    ranks = torch.randperm(len(places))
    assert torch.equal(ranked(eligible, ranks), places[ranks])
    assert len(ranked(torch.zeros(4, dtype=torch.bool), torch.arange(0))) == 0
