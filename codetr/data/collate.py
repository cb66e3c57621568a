"""Collating samples into a padded, normalised batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codetr.boxes import clip_xyxy, xyxy_to_cxcywh
from codetr.data.sample import BoxSet, Sample
from codetr.errors import UserError
from codetr.structures import Batch, ImageInfo, Images, Targets

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""For RGB values from 0 to 255."""


class Collate:
    """Callable that normalises by ``mean`` and ``std`` (RGB, 0 to 255) and pads with zeros.

    Each image is padded at the bottom and right to a multiple of ``size_divisor``, then to the
    largest size in the batch. The valid area is the whole image of a sample: for one that
    large-scale jitter padded to a canvas, boxes are relative to the canvas and there is no padding.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size_divisor: int = 1,
    ) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError(
                f"data.mean={list(mean)} data.std={list(std)}: give three numbers each, one per "
                "RGB channel from 0 to 255, and std above 0"
            )
        if size_divisor < 1:
            raise UserError(f"data.size_divisor={size_divisor}: give 1 for none, or 32")
        self.mean = torch.tensor(list(mean), dtype=torch.float32)[:, None, None]
        self.std = torch.tensor(list(std), dtype=torch.float32)[:, None, None]
        self.size_divisor = size_divisor

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The batch of the samples, which must have equally many teachers."""
        teachers = zip(*(s.teachers for s in samples), strict=True)
        return Batch(
            images=self._images(samples),
            targets=tuple(_targets(s.targets, s.size, self.size_divisor) for s in samples),
            teachers=tuple(
                tuple(_targets(boxes, s.size) for boxes, s in zip(sets, samples, strict=True))
                for sets in teachers
            ),
            infos=tuple(
                ImageInfo(
                    image_id=s.image_id,
                    original_size=s.original_size,
                    scale=s.scale,
                    path=s.path,
                )
                for s in samples
            ),
        )

    def padded(self, sizes: Tensor) -> Tensor:
        """Sizes (..., 2) int64, pixels, each rounded up to a multiple of ``size_divisor``."""
        return (sizes + self.size_divisor - 1) // self.size_divisor * self.size_divisor

    def _images(self, samples: Sequence[Sample]) -> Images:
        sizes = torch.tensor([s.size for s in samples])
        padded_sizes = self.padded(sizes)
        height, width = padded_sizes.amax(dim=0).tolist()
        pixels = torch.zeros(len(samples), 3, height, width)
        padding = torch.ones(len(samples), height, width, dtype=torch.bool)
        for b, sample in enumerate(samples):
            h, w = sample.size
            self.normalise(sample.image, out=pixels[b, :, :h, :w])
            padding[b, :h, :w] = False
        return Images(pixels=pixels, padding=padding, sizes=sizes, padded_sizes=padded_sizes)

    def normalise(self, image: Tensor, out: Tensor | None = None) -> Tensor:
        """(3, H, W) uint8 to float32, into ``out`` where it is given.

        A division, since 1/std would round differently; in place, since new memory of this size
        costs more than the arithmetic.
        """
        result = torch.empty(image.shape) if out is None else out
        return result.copy_(image).sub_(self.mean).div_(self.std)


def _targets(boxes: BoxSet, size: tuple[int, int], divisor: int = 1) -> Targets:
    """Targets from boxes, clipped to the valid area of ``size`` (height, width) and relative to it;
    masks are padded to multiples of ``divisor``, not to the size of the batch.
    """
    size_wh = torch.tensor([size[1], size[0]], dtype=torch.float32)
    boxes_xyxy_px = clip_xyxy(boxes.boxes, size_wh)
    return Targets(
        boxes=xyxy_to_cxcywh(boxes_xyxy_px) / size_wh.repeat(2),
        labels=boxes.labels,
        weights=boxes.scores,
        size=size_wh,
        masks=None if boxes.masks is None else _padded(boxes.masks, divisor),
    )


def _padded(masks: Tensor, divisor: int) -> Tensor:
    height, width = masks.shape[-2:]
    return F.pad(masks, (0, -width % divisor, 0, -height % divisor))
