"""Suppression within sets of boxes: every way keeps the same ones."""

import logging
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

import codetr.suppression as suppression
from codetr.errors import UserError
from codetr.suppression import METHODS, surviving, use_nms

SIZES = (40, 0, 25, 1)


@pytest.fixture(autouse=True)
def unsettled():
    yield
    use_nms("auto")


def random_boxes(count: int) -> Tensor:
    """(count, 4) xyxy within 60 by 60, each at least 4 wide and high."""
    low = torch.rand(count, 2) * 52
    return torch.cat([low, low + 4 + torch.rand(count, 2) * (56 - low)], dim=1)


def sets_of_boxes(seed: int, images: int = 3) -> tuple[Tensor, Tensor]:
    """Boxes and scores of all sets of all images."""
    torch.manual_seed(seed)
    boxes = torch.stack([random_boxes(sum(SIZES)) for _ in range(images)])
    return boxes, torch.rand(images, sum(SIZES))


def by_definition(boxes: Tensor, scores: Tensor, sizes: tuple[int, ...], iou: float) -> Tensor:
    """What is kept, in rational numbers, one box after the other."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(len(boxes)):
        start = 0
        for size in sizes:
            every = range(start, start + size)
            start += size
            chosen: list[list[Fraction]] = []
            for i in sorted(every, key=lambda i: -float(scores[image, i])):  # a stable sort
                own = [Fraction(x) for x in boxes[image, i].tolist()]
                if all(overlap(own, other) <= Fraction(str(iou)) for other in chosen):
                    chosen.append(own)
                    kept[image, i] = True
    return kept


def overlap(a: list[Fraction], b: list[Fraction]) -> Fraction:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in range(2))
    shared = max(width, Fraction(0)) * max(height, Fraction(0))
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - shared
    return shared / union if union else Fraction(0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["auto", *METHODS])
def test_every_way_keeps_what_torchvision_keeps(name: str, seed: int) -> None:
    boxes, scores = sets_of_boxes(seed)
    number = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    use_nms(name)
    for own, score, found in zip(boxes, scores, surviving(boxes, scores, SIZES, 0.4), strict=True):
        expected = batched_nms(own, score, number, 0.4)
        assert found.nonzero()[:, 0].tolist() == expected.sort().values.tolist()
        assert 4 < found.sum() < len(own)


CASES = {
    "crowd": lambda boxes, scores: (boxes, scores),
    "equal scores": lambda boxes, scores: (boxes, scores.round(decimals=1)),
    "one score": lambda boxes, scores: (boxes, torch.ones_like(scores)),
    "overlaps at the threshold": lambda boxes, scores: ((boxes / 10).round(), scores),
    "huge": lambda boxes, scores: (boxes * 1e7, scores),
    "far away": lambda boxes, scores: (boxes + 1e6, scores),
    "tiny": lambda boxes, scores: (boxes * 1e-6, scores),
    "one of them huge": lambda boxes, scores: (
        torch.cat([boxes[:, :1] * 1e6, boxes[:, 1:]], dim=1),
        scores,
    ),
    "without area": lambda boxes, scores: (boxes[..., :2].repeat(1, 1, 2), scores),
    "copies": lambda boxes, scores: (boxes[:, :1].expand_as(boxes), scores),
}
"""Further inputs, from boxes and scores."""


@pytest.mark.parametrize("iou", [0.25, 0.4, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_every_way_keeps_what_the_definition_keeps(case: str, iou: float) -> None:
    boxes, scores = CASES[case](*sets_of_boxes(0, images=2))
    expected = by_definition(boxes, scores, SIZES, iou)
    assert expected.any()
    for name in METHODS:
        use_nms(name)
        assert torch.equal(surviving(boxes, scores, SIZES, iou), expected), name


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.6, 0.7])
def test_an_overlap_that_is_the_threshold_suppresses_nothing(iou: float) -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10 * iou], [0, 0, 10, 10 * iou + 1e-4]]])
    for name in METHODS:
        use_nms(name)
        kept = surviving(boxes, torch.tensor([[0.9, 0.8, 0.7]]), (2, 1), iou)
        assert kept.all(), name
        kept = surviving(boxes[:, [0, 2]], torch.tensor([[0.9, 0.8]]), (2,), iou)
        assert kept.tolist() == [[True, False]], name


@pytest.mark.parametrize("images", [1, 24])
def test_images_of_a_large_batch_do_not_see_each_other(images: int) -> None:
    boxes, scores = sets_of_boxes(1, images=1)
    for name in METHODS:
        use_nms(name)
        alone = surviving(boxes, scores, SIZES, 0.4)
        many = surviving(boxes.repeat(images, 1, 1), scores.repeat(images, 1), SIZES, 0.4)
        assert torch.equal(many, alone.expand(images, -1)), name


@pytest.mark.parametrize(("images", "sizes"), [(0, (3, 2)), (2, (0, 0)), (2, ()), (1, (0, 1, 0))])
@pytest.mark.parametrize("name", METHODS)
def test_nothing_to_suppress(name: str, images: int, sizes: tuple[int, ...]) -> None:
    use_nms(name)
    boxes = torch.ones(images, sum(sizes), 4)
    kept = surviving(boxes, boxes[..., 0], sizes, 0.5)
    assert kept.shape == (images, sum(sizes))
    assert kept.dtype == torch.bool
    assert kept.all()


def test_a_chain_longer_than_the_rounds_between_two_looks_is_settled() -> None:
    """Every box overlaps its two neighbours alone: every other one is kept."""
    number = 5 * suppression.CHECK_EVERY
    left = torch.arange(number) * 4.0
    boxes = torch.stack([left, left * 0, left + 10, left * 0 + 10], dim=1)[None]
    use_nms("fixed_point")
    kept = surviving(boxes, torch.linspace(1, 0.5, number)[None], (number,), 0.4)
    assert kept[0].tolist() == [i % 2 == 0 for i in range(number)]


def test_no_call_sees_the_boxes_of_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a call on a GPU grows with the square of its boxes."""
    seen, nms = [], suppression.nms
    monkeypatch.setattr(suppression, "nms", lambda b, *more: seen.append(len(b)) or nms(b, *more))
    use_nms("image")
    surviving(*sets_of_boxes(0), SIZES, 0.4)
    assert seen == [sum(SIZES)] * 3


@pytest.mark.parametrize("best", METHODS)
def test_the_fastest_method_is_chosen_and_logged(
    best: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The best of each one's times counts. Each was run once before it is timed."""
    calls: list[str] = []
    works = {name: lambda name=name: calls.append(name) for name in METHODS}
    slow = {name: iter([9.0, 5.0, 7.0]) for name in METHODS} | {best: iter([30.0, 4.0, 30.0])}

    def timed(work) -> float:
        before = list(calls)
        work()
        assert calls[-1] in before
        return next(slow[calls[-1]])

    monkeypatch.setattr(suppression, "_milliseconds", timed)
    with caplog.at_level(logging.INFO, logger="codetr"):
        assert suppression.fastest(works) == best
    (line,) = caplog.messages
    assert line.startswith(f"suppression of proposals: {best} (")
    assert f"{best} 4.00 ms" in line
    assert line.count("5.00 ms") == len(METHODS) - 1


def test_a_way_without_memory_for_it_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(suppression, "_milliseconds", lambda work: 3.0)
    with caplog.at_level(logging.INFO, logger="codetr"):
        assert suppression.fastest({"image": too_large, "level": lambda: None}) == "level"
    assert "level (image out of memory, level 3.00 ms;" in caplog.text


class OnCuda(torch.Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    is_cuda = True


def test_on_cuda_it_is_chosen_once_unless_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def choose(works) -> str:
        asked.append(list(works))
        assert all(torch.equal(work(), expected) for work in works.values())
        return "image"

    boxes, scores = sets_of_boxes(0)
    expected = surviving(boxes, scores, SIZES, 0.4)
    monkeypatch.setattr(suppression, "fastest", choose)
    use_nms("level")
    assert torch.equal(surviving(boxes.as_subclass(OnCuda), scores, SIZES, 0.4), expected)
    assert not asked
    use_nms("auto")
    surviving(boxes, scores, SIZES, 0.4)
    assert not asked
    for _ in range(3):
        assert torch.equal(surviving(boxes.as_subclass(OnCuda), scores, SIZES, 0.4), expected)
    assert asked == [list(METHODS)]


def test_other_names_are_an_error() -> None:
    with pytest.raises(UserError, match=r"ops.nms=cuda: no such choice: take one of auto, image"):
        use_nms("cuda")
