"""Small random batches."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from codetr.structures import Batch, Images, Pyramid, Targets


def make_batch(
    sizes: Sequence[tuple[int, int]], boxes: Sequence[Tensor], labels: Sequence[Tensor]
) -> Batch:
    """A batch of images (h, w) with xyxy pixel boxes, padded to the largest size."""
    height, width = (max(s[axis] for s in sizes) for axis in (0, 1))
    valid = torch.tensor(sizes)
    padding = torch.ones(len(sizes), height, width, dtype=torch.bool)
    targets = []
    for image, (h, w) in enumerate(sizes):
        padding[image, :h, :w] = False
        size = torch.tensor([w, h], dtype=boxes[image].dtype)
        x1, y1, x2, y2 = boxes[image].unbind(1)
        cxcywh = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
        targets.append(
            Targets(
                boxes=cxcywh / size.repeat(2),
                labels=labels[image],
                weights=torch.ones(len(labels[image])),
                size=size,
            )
        )
    images = Images(
        pixels=torch.zeros(len(sizes), 3, height, width),
        padding=padding,
        sizes=valid,
        padded_sizes=valid,
    )
    return Batch(images=images, targets=tuple(targets))


def random_boxes(count: int, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """(count, 4) xyxy px inside an image (h, w), each at least 4 px wide and high."""
    scale = torch.tensor([size[1], size[0]], dtype=dtype)
    low = torch.rand(count, 2, dtype=dtype) * (scale - 8)
    extent = 4 + torch.rand(count, 2, dtype=dtype) * (scale - low - 4)
    return torch.cat([low, low + extent], dim=1)


@pytest.fixture
def small_batch() -> Callable[..., tuple[Pyramid, Batch]]:
    """Three levels (strides 8, 16, 32) of 32 channels, and the given numbers of boxes."""

    def build(counts: Sequence[int], dtype: torch.dtype = torch.float32) -> tuple[Pyramid, Batch]:
        sizes = [(96, 128), (80, 100)][: len(counts)]
        boxes = [random_boxes(n, size, dtype) for n, size in zip(counts, sizes, strict=True)]
        labels = [torch.randint(5, (n,)) for n in counts]
        maps = tuple(
            torch.randn(len(counts), 32, math.ceil(96 / s), math.ceil(128 / s), dtype=dtype)
            for s in (8, 16, 32)
        )
        for level in maps:
            level.requires_grad_()
        return Pyramid(maps=maps, strides=(8, 16, 32)), make_batch(sizes, boxes, labels)

    return build
