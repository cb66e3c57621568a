"""Mask targets against RoIAlign by hand, and against masks that need no resizing."""

import math

import pytest
import torch
from torch import Tensor

from codetr.errors import UserError
from codetr.structures import Targets
from codetr.supervision.mask_targets import mask_shares, mask_targets


def _value(mask: Tensor, y: float, x: float) -> float:
    """Bilinear between pixel centres; beyond the outermost ones theirs, and 0 a pixel further."""
    height, width = mask.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return float(
        (1 - dy) * ((1 - dx) * mask[top, left] + dx * mask[top, right])
        + dy * ((1 - dx) * mask[bottom, left] + dx * mask[bottom, right])
    )


def _by_hand(mask: Tensor, box: list[float], size: int) -> Tensor:
    x0, y0, x1, y1 = box
    cell_x, cell_y = (x1 - x0) / size, (y1 - y0) / size
    many_x, many_y = max(math.ceil(cell_x), 1), max(math.ceil(cell_y), 1)
    found = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            samples = [
                _value(
                    mask,
                    y0 - 0.5 + (i + (a + 0.5) / many_y) * cell_y,
                    x0 - 0.5 + (j + (b + 0.5) / many_x) * cell_x,
                )
                for a in range(many_y)
                for b in range(many_x)
            ]
            found[i, j] = sum(samples) / len(samples)
    return found


def test_shares_are_roi_align_of_the_assigned_mask() -> None:
    torch.manual_seed(0)
    masks = (torch.rand(3, 19, 27) > 0.4).to(torch.uint8)
    boxes = [[2.3, 1.7, 20.9, 17.2], [0.0, 0.0, 27.0, 19.0], [5.5, 6.5, 8.0, 7.25]]
    assigned = torch.tensor([2, 0, 1])
    (found,) = mask_shares(masks, torch.tensor(boxes, dtype=torch.float64), assigned, [5])
    for share, box, number in zip(found, boxes, assigned.tolist(), strict=True):
        torch.testing.assert_close(share, _by_hand(masks[number].double(), box, 5))


def test_boxes_are_clipped_to_the_mask() -> None:
    masks = torch.ones(1, 8, 8, dtype=torch.uint8)
    number = torch.tensor([0])
    (beyond,) = mask_shares(masks, torch.tensor([[-4.0, -4.0, 20.0, 20.0]]), number, [4])
    (inside,) = mask_shares(masks, torch.tensor([[0.0, 0.0, 8.0, 8.0]]), number, [4])
    assert torch.equal(beyond, inside)


def _targets(masks: Tensor | None, count: int) -> Targets:
    return Targets(
        boxes=torch.zeros(count, 4),
        labels=torch.zeros(count, dtype=torch.int64),
        weights=torch.ones(count),
        size=torch.tensor([8.0, 8.0]),
        masks=masks,
    )


def test_targets_of_several_images_are_cells_at_least_half_full() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[0, :, :4], masks[1, 2:, :] = 1, 1
    whole, part = torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([[2.0, 2.0, 6.0, 6.0]])
    images = [_targets(masks, 2), _targets(masks[:0], 0), _targets(masks[:1], 1)]
    boxes = [torch.cat([whole, part]), whole[:0], whole]
    numbers = [torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64), torch.tensor([0])]
    found, coarse = mask_targets(images, boxes, numbers, [4, 2])
    left = torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 4)
    assert torch.equal(found, torch.stack([left, torch.ones(4, 4), left]))
    assert torch.equal(coarse, torch.stack([left[:2, 1:3], torch.ones(2, 2), left[:2, 1:3]]))
    with pytest.raises(UserError, match=r"data\.masks=true"):
        mask_targets([_targets(None, 2)], [whole], [torch.tensor([0])], [4])
