"""Training images combined from several: mosaic and mixup."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from codetr.data.augment import cropped, padded, resize, without_tiny_boxes
from codetr.data.resize import fitted_size
from codetr.data.sample import BoxSet, Sample
from codetr.errors import UserError


class Mix(Protocol):
    """Combines a training image with random other ones; all are already augmented."""

    @property
    def needs_masks(self) -> bool:
        """Whether the targets must have masks."""
        ...

    def draw(self, epoch: int) -> int:
        """A random number of other images to combine with; 0: the image is used unchanged."""
        ...

    def __call__(self, sample: Sample, *others: Sample) -> Sample:
        """``sample`` combined with the ``others``, as many as ``draw`` returned."""
        ...


@dataclass(frozen=True)
class Occasionally:
    """When to mix: with ``probability``, in the first ``epochs`` of training (None: in all).

    Training is better without it in the last epochs (YOLOX, arXiv 2107.08430, section 2.1).
    """

    probability: float = 1.0
    epochs: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(
                f"augmentation.mix.probability={self.probability}: give a number from 0 to 1"
            )
        if self.epochs is not None and self.epochs < 0:
            raise UserError(f"augmentation.mix.epochs={self.epochs}: give 0 or more, or null")

    def now(self, epoch: int) -> bool:
        """Whether to mix an image in ``epoch`` (from 0), drawn at random."""
        return (self.epochs is None or epoch < self.epochs) and (
            torch.rand(()).item() < self.probability
        )


@dataclass(frozen=True, kw_only=True)
class Mosaic(Occasionally):
    """Four images in the quadrants around a random point of a square canvas (YOLOv4, arXiv
    2004.10934, section 3.3).

    The point is uniform within ``centre`` (fractions of the side) in both directions. Each image is
    resized to fit half the canvas (``canvas`` pixels) and placed with one corner at the point; it
    is cropped to a smaller quadrant, and a larger one is filled with grey. Boxes are clipped, and
    dropped if a side is not longer than ``min_box_px``; the whole canvas is valid area.
    """

    canvas: int
    centre: tuple[float, float] = (0.25, 0.75)
    min_box_px: float = 1.0
    needs_masks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.centre
        if not 0 < low <= high < 1:
            raise UserError(
                f"augmentation.mix.centre={list(self.centre)}: give two shares of the canvas "
                "between 0 and 1, the lower one first"
            )
        if self.canvas < 4:
            raise UserError(f"augmentation.mix.canvas={self.canvas}: give the side in pixels")
        if self.min_box_px < 0:
            raise UserError(f"augmentation.mix.min_box_px={self.min_box_px}: give 0 or more")

    def draw(self, epoch: int) -> int:
        """See ``Mix``."""
        return 3 if self.now(epoch) else 0

    def __call__(self, sample: Sample, *others: Sample) -> Sample:
        """The mosaic of four images, ``sample`` in the upper left."""
        low, high = self.centre
        share = low + (high - low) * torch.rand(2)
        x, y = (share * self.canvas).round().clamp(1, self.canvas - 1).int().tolist()
        quadrants = [
            self._quadrant(part, x, y, left, upper)
            for part, (upper, left) in zip(
                (sample, *others),
                ((True, True), (True, False), (False, True), (False, False)),
                strict=True,
            )
        ]
        image = quadrants[0].image.clone()
        image[:, :y, x:] = quadrants[1].image[:, :y, x:]
        image[:, y:, :x] = quadrants[2].image[:, y:, :x]
        image[:, y:, x:] = quadrants[3].image[:, y:, x:]
        return _together(image, quadrants[0], *quadrants[1:])

    def _quadrant(self, sample: Sample, x: int, y: int, left: bool, upper: bool) -> Sample:
        """``sample`` in its quadrant of an otherwise grey canvas."""
        side = self.canvas // 2
        fitted = resize(sample, fitted_size(sample.size, side, side), antialias=True)
        height, width = fitted.size
        most_wide, most_high = (x if left else self.canvas - x), (y if upper else self.canvas - y)
        w, h = min(width, most_wide), min(height, most_high)
        window = (height - h if upper else 0, width - w if left else 0, h, w)
        part = cropped(fitted, window)
        x0, y0 = (x - w if left else x), (y - h if upper else y)
        placed = padded(part, x0, y0, (self.canvas, self.canvas))
        return without_tiny_boxes(placed, self.min_box_px)


@dataclass(frozen=True, kw_only=True)
class MixUp(Occasionally):
    """Two images blended, with the boxes of both (Zhang et al., "Bag of Freebies for Training
    Object Detection Neural Networks", arXiv 1902.04103, section 3.1).

    Both are placed in the upper left of a canvas large enough for either, without resizing. The
    weight of the first is drawn from Beta(``alpha``, ``alpha``); 1.5 as in the paper. All boxes
    have full weight, also those of the fainter image.
    """

    alpha: float = 1.5
    needs_masks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise UserError(f"augmentation.mix.alpha={self.alpha}: give a number above 0")

    def draw(self, epoch: int) -> int:
        """See ``Mix``."""
        return 1 if self.now(epoch) else 0

    def __call__(self, sample: Sample, *others: Sample) -> Sample:
        """The two images, blended."""
        (other,) = others
        size = tuple(max(sides) for sides in zip(sample.size, other.size, strict=True))
        first, second = (padded(part, 0, 0, size) for part in (sample, other))
        alpha = torch.tensor(float(self.alpha))
        share = torch.distributions.Beta(alpha, alpha).sample().item()
        blended = first.image * share + second.image * (1 - share)
        return _together(blended.round().to(torch.uint8), first, second)


def _together(image: Tensor, first: Sample, *others: Sample) -> Sample:
    """``image`` with the joined boxes of all samples, separately for targets and each teacher."""
    sets = [s.box_sets for s in (first, *others)]
    joined = tuple(BoxSet.joined(same) for same in zip(*sets, strict=True))
    return replace(first, image=image).with_box_sets(joined)
