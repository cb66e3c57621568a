"""Suppression within sets of boxes: every way keeps the same ones."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

import codetr.suppression
from codetr.suppression import image_by_image, set_by_set, surviving

SIZES = (40, 0, 25, 1)
IMAGES = 3


def random_boxes(count: int) -> Tensor:
    """(count, 4) xyxy within 60 by 60, each at least 4 wide and high."""
    low = torch.rand(count, 2) * 52
    return torch.cat([low, low + 4 + torch.rand(count, 2) * (56 - low)], dim=1)


def sets_of_boxes(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes and scores of all sets of all images, and each one's set."""
    torch.manual_seed(seed)
    boxes = torch.stack([random_boxes(sum(SIZES)) for _ in range(IMAGES)])
    scores = torch.rand(IMAGES, sum(SIZES))
    return boxes, scores, torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("way", [set_by_set, image_by_image, surviving])
def test_both_ways_keep_what_torchvision_keeps(way, seed: int) -> None:
    boxes, scores, number = sets_of_boxes(seed)
    kept = way(boxes, scores, SIZES, 0.4)
    for own, score, found in zip(boxes, scores, kept, strict=True):
        expected = batched_nms(own, score, number, 0.4)
        assert found.nonzero()[:, 0].tolist() == expected.sort().values.tolist()
        assert 4 < found.sum() < len(own)


def test_sets_are_apart_also_far_from_the_origin() -> None:
    boxes = torch.tensor([[3000.0, 3000, 3100, 3100]] * 3) - torch.tensor([[0.0], [0], [6000]])
    scores = torch.tensor([[0.9, 0.8, 0.7], [0.8, 0.9, 0.7]])
    assert image_by_image(boxes[None], scores[:1], (1, 1, 1), 0.5).all()
    found = image_by_image(boxes.expand(2, 3, 4), scores, (2, 1), 0.5)
    assert found.tolist() == [[1, 0, 1], [0, 1, 1]]


def test_sets_that_are_moved_apart_keep_the_overlaps_they_had() -> None:
    """An overlap just above the threshold; where float32 would move it, it would be below."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0001]])
    far = torch.tensor([[0.0, 0.0, 1e5, 1.0]])
    together = torch.cat([far, boxes])[None]
    scores = torch.tensor([[0.5, 0.9, 0.8]])
    for way in (set_by_set, image_by_image):
        assert way(together, scores, (1, 2), 0.5).tolist() == [[1, 1, 0]]


def test_no_call_sees_the_boxes_of_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a call on a GPU grows with the square of its boxes."""
    seen = []
    monkeypatch.setattr(
        codetr.suppression, "nms", lambda b, s, iou: seen.append(len(b)) or nms(b, s, iou)
    )
    boxes, scores, _ = sets_of_boxes(0)
    image_by_image(boxes, scores, SIZES, 0.4)
    assert seen == [sum(SIZES)] * IMAGES
