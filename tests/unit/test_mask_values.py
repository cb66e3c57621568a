"""Pasting against a loop over pixels and cells."""

import math

import pytest
import torch
from torch import Tensor

from codetr.masks import THRESHOLD, Masks, joined_masks, paste
from codetr.structures import Detections


def _at(cells: Tensor, row: float, column: float) -> float:
    """Bilinear between the cells' centres, zeros outside."""
    size, total = len(cells), 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < size and 0 <= j < size:
                share = (1 - abs(row - i)) * (1 - abs(column - j))
                total += share * cells[i, j].item()
    return total


def _naive(cells: Tensor, box: list[float], size: tuple[int, int]) -> Tensor:
    x0, y0, x1, y1 = box
    bitmap = torch.zeros(size, dtype=torch.bool)
    for y in range(size[0]):
        for x in range(size[1]):
            column = (x + 0.5 - x0) / (x1 - x0) * len(cells) - 0.5
            row = (y + 0.5 - y0) / (y1 - y0) * len(cells) - 0.5
            bitmap[y, x] = _at(cells, row, column) >= THRESHOLD
    return bitmap


def test_pasting_equals_a_loop_over_pixels() -> None:
    """Boxes within, beyond every side of, and larger than the image; small and of no pixel."""
    torch.manual_seed(0)
    size = (17, 23)
    boxes = [
        [3.2, 4.7, 15.9, 12.1],
        [-5.0, -3.0, 6.5, 8.25],
        [15.0, 9.0, 40.0, 30.0],
        [-10.0, -10.0, 50.0, 50.0],
        [7.3, 7.3, 7.6, 7.9],
        [30.0, 2.0, 35.0, 9.0],
    ]
    cells = torch.rand(len(boxes), 7, 7, dtype=torch.float64)
    found = paste(cells, torch.tensor(boxes, dtype=torch.float64), size)
    for bitmap, own, box in zip(found, cells, boxes, strict=True):
        assert torch.equal(bitmap, _naive(own, box, size))
    assert found[0].any()
    assert found[3].sum() > 100
    assert not found[5].any()


def test_nothing_outside_a_box_is_on_its_object() -> None:
    bitmap = paste(torch.ones(1, 4, 4), torch.tensor([[5.0, 6.0, 9.0, 11.0]]), (20, 20))[0]
    assert bitmap.sum() == 4 * 5
    assert bitmap[6:11, 5:9].all()


@pytest.mark.parametrize("box", [[5.0, 5.0, 5.0, 9.0], [5.5, 5.5, 5.5, 5.5], [20, 20, 20, 20]])
def test_boxes_without_area_break_nothing(box: list[float]) -> None:
    bitmap = paste(torch.ones(1, 4, 4), torch.tensor([box]), (20, 20))[0]
    assert bitmap.sum() <= 4 * 8


@pytest.mark.parametrize(
    "box",
    [[math.nan] * 4, [2, 2, 9, math.nan], [2, 2, math.inf, 9], [-math.inf, 2, 9, 9], [15, 5, 3, 9]],
    ids=str,
)
def test_boxes_that_are_none_have_no_pixel(box: list[float]) -> None:
    whole = [0.0, 0.0, 20.0, 20.0]
    broken, other = paste(torch.ones(2, 4, 4), torch.tensor([box, whole]), (20, 20))
    assert not broken.any()
    assert other[2:18, 2:18].all()


def test_bitmaps_follow_their_detections() -> None:
    torch.manual_seed(1)
    corners = torch.rand(5, 2) * 10
    found = Detections(
        boxes_xyxy_px=torch.cat([corners, corners + 3 + torch.rand(5, 2) * 8], dim=1),
        scores=torch.rand(5),
        labels=torch.arange(5),
        cells=Masks(probabilities=torch.rand(5, 6, 6), scores=torch.rand(5)),
    )
    bitmaps = found.bitmaps((24, 24))
    index = torch.tensor([4, 1])
    assert torch.equal(found.take(index).bitmaps((24, 24)), bitmaps[index])
    assert found.above(2.0).bitmaps((24, 24)).shape == (0, 24, 24)
    with pytest.raises(ValueError, match="no masks"):
        Detections(boxes_xyxy_px=corners, scores=corners, labels=corners).bitmaps((2, 2))


def test_mirrored_masks_are_those_of_the_mirror_image() -> None:
    masks = Masks(probabilities=torch.rand(2, 6, 6), scores=torch.rand(2))
    boxes = torch.tensor([[2.0, 3.0, 9.0, 12.0], [4.5, 1.25, 19.0, 18.0]])
    away = torch.stack([20 - boxes[:, 2], boxes[:, 1], 20 - boxes[:, 0], boxes[:, 3]], dim=1)
    there = paste(masks.mirrored().probabilities, away, (20, 20))
    assert torch.equal(there.flip(-1), paste(masks.probabilities, boxes, (20, 20)))


def test_masks_of_several_views_are_one_after_the_other() -> None:
    one, other = (Masks(probabilities=torch.rand(n, 4, 4), scores=torch.rand(n)) for n in (2, 3))
    both = joined_masks([one, other])
    assert both is not None
    assert len(both) == 5
    assert torch.equal(both.scores[2:], other.scores)
    assert joined_masks([one, None]) is None
    assert joined_masks([]) is None
