"""Augmentation: callables Sample -> Sample, composed of the steps below.

Every step applies torchvision's v2 transforms to the image and to *all* box sets (ground truth and
teachers) with their masks at once, so that they stay consistent. Pixels stay uint8; collating
normalises. Random numbers come from torch's global generator, which the dataset seeds per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from codetr.data.coco import GREY
from codetr.data.mask_bounds import fitted_to_masks
from codetr.data.resize import (
    Window,
    detr_size,
    fitted_size,
    resize_bilinear,
    resize_nearest,
)
from codetr.data.sample import Sample

Augmentation = Callable[[Sample], Sample]
"""May raise ``DrawAnother``."""


class DrawAnother(Exception):
    """Raised by an augmentation that rejects a sample: the dataset then draws another image."""


@runtime_checkable
class KnownSize(Protocol):
    """An augmentation whose output size is known in advance. Evaluation puts only images of equal
    size into a batch; images of unknown output size are evaluated one by one.
    """

    def output_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The (height, width) in pixels of the result for an image of ``size``; None if unknown."""
        ...


def output_size(augmentation: Augmentation, size: tuple[int, int]) -> tuple[int, int] | None:
    """The (height, width) of an image of ``size`` after ``augmentation``; None if unknown."""
    return augmentation.output_size(size) if isinstance(augmentation, KnownSize) else None


def transform(sample: Sample, operation: Callable[..., Any]) -> Sample:
    """Apply ``operation``, a torchvision v2 transform, once to the image and all box sets with
    their masks (which are resized by nearest neighbour).
    """
    size = sample.size
    boxes = [
        tv_tensors.BoundingBoxes(s.boxes, format="XYXY", canvas_size=size)  # type: ignore[call-overload]
        for s in sample.box_sets
    ]
    masks = [tv_tensors.Mask(s.masks) for s in sample.box_sets if s.masks is not None]
    image, *moved = operation(tv_tensors.Image(sample.image), *boxes, *masks)
    plain = iter([value.as_subclass(Tensor) for value in moved])
    sets = [replace(s, boxes=next(plain)) for s in sample.box_sets]
    sets = [s if s.masks is None else replace(s, masks=next(plain)) for s in sets]
    return replace(sample, image=image.as_subclass(Tensor)).with_box_sets(tuple(sets))


def resize(
    sample: Sample, size: tuple[int, int], antialias: bool = False, window: Window | None = None
) -> Sample:
    """Resize to ``size`` (height, width) and record the scale per axis; if given, crop the result
    to ``window``. ``antialias``: see ``resize_bilinear``.
    """

    def resized(part: Any) -> Any:
        if isinstance(part, tv_tensors.Mask):
            return resize_nearest(part.as_subclass(Tensor), size, window)
        if isinstance(part, tv_tensors.Image):
            return resize_bilinear(part.as_subclass(Tensor), size, antialias, window)
        boxes = v2.functional.resize(part, list(size))
        return boxes if window is None else v2.functional.crop(boxes, *window)

    height, width = sample.size
    moved = transform(sample, lambda *parts: [resized(part) for part in parts])
    x, y = sample.scale
    return replace(moved, scale=(x * size[1] / width, y * size[0] / height))


def without_tiny_boxes(sample: Sample, min_size_px: float = 0.0) -> Sample:
    """Keep the boxes whose width and height are above ``min_size_px``."""
    kept = tuple(
        s.select((s.boxes[:, 2:] - s.boxes[:, :2] > min_size_px).all(dim=1))
        for s in sample.box_sets
    )
    return sample.with_box_sets(kept)


@dataclass(frozen=True)
class Chain:
    """Runs steps in sequence; without steps, the sample is unchanged."""

    steps: Sequence[Augmentation] = ()

    def __call__(self, sample: Sample) -> Sample:
        """Run every step."""
        for step in self.steps:
            sample = step(sample)
        return sample

    def output_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """See ``KnownSize``: known if it is known for every step."""
        known: tuple[int, int] | None = size
        for step in self.steps:
            known = None if known is None else output_size(step, known)
        return known


@dataclass(frozen=True)
class Choice:
    """``first`` with ``probability``, else ``second``."""

    first: Augmentation
    second: Augmentation
    probability: float

    def choose(self) -> Augmentation:
        """Draw one of the two at random."""
        return self.first if torch.rand(()).item() < self.probability else self.second

    def __call__(self, sample: Sample) -> Sample:
        """Run one of the two, drawn at random."""
        return self.choose()(sample)


@dataclass(frozen=True)
class Apply:
    """Any torchvision v2 transform that keeps the number of boxes: flips, colour jitter..."""

    operation: Callable[..., Any]

    def __call__(self, sample: Sample) -> Sample:
        """Run the transform."""
        return transform(sample, self.operation)


@dataclass(frozen=True)
class RandomShortSide:
    """Resize the short side to a random one of ``shorts``, limiting the long side to ``long``
    (pixels). ``antialias`` as in ``resize``; it also selects DETR's rounding (``detr_size``).
    """

    shorts: Sequence[int]
    long: int
    antialias: bool = False

    def target(self, size: tuple[int, int]) -> tuple[int, int]:
        """A random new (height, width) for an image of ``size``."""
        short = self.shorts[_randint(0, len(self.shorts) - 1)]
        return (detr_size if self.antialias else fitted_size)(size, short, self.long)

    def __call__(self, sample: Sample) -> Sample:
        """Pick a short side and resize."""
        return resize(sample, self.target(sample.size), self.antialias)


@dataclass(frozen=True)
class RandomCrop:
    """Crop a window whose height and width are each uniform in [low, high] pixels, at most the
    image. Boxes are clipped; those left without area are dropped (mmdet ``absolute_range``).
    """

    low: int
    high: int

    def window(self, size: tuple[int, int]) -> Window | None:
        """A random window of an image of ``size`` (height, width); None for the whole image."""
        height, width = (_randint(min(s, self.low), min(s, self.high)) for s in size)
        # torchvision draws a position only where there is more than one.
        top = _randint(0, size[0] - height) if size[0] > height else 0
        left = _randint(0, size[1] - width) if size[1] > width else 0
        return None if (height, width) == size else (top, left, height, width)

    def __call__(self, sample: Sample) -> Sample:
        """Pick a window and crop."""
        window = self.window(sample.size)
        return without_tiny_boxes(sample) if window is None else cropped(sample, window)


def cropped(sample: Sample, window: Window) -> Sample:
    """The sample cropped to ``window``, without boxes that have no area there."""
    return without_tiny_boxes(
        transform(sample, lambda *parts: [v2.functional.crop(part, *window) for part in parts])
    )


def padded(sample: Sample, x: int, y: int, size: tuple[int, ...]) -> Sample:
    """The sample with its upper left corner at (x, y) of a grey canvas of (height, width)."""
    height, width = sample.size
    around = [x, y, size[1] - x - width, size[0] - y - height]
    return transform(sample, v2.Pad(around, fill={tv_tensors.Image: GREY, "others": 0}))


@dataclass(frozen=True)
class KeepVisible:
    """Keep the boxes whose width and height are above ``min_size_px``. Boxes with masks become the
    bounds of the visible part of these, and are removed if nothing is visible.

    A sample without targets is unchanged. Raises DrawAnother if there were targets and none is left
    (mmdet ``FilterAnnotations``).
    """

    min_size_px: float

    def __call__(self, sample: Sample) -> Sample:
        """Filter every box set."""
        kept = without_tiny_boxes(sample, self.min_size_px)
        if kept.targets.masks is not None:
            kept = fitted_to_masks(kept)
        if len(sample.targets) and not len(kept.targets):
            raise DrawAnother
        return kept


@dataclass(frozen=True)
class ScaleJitter:
    """Resize to fit a square canvas (pixels) times a random ratio in [low, high]; ``antialias`` as
    in ``resize``.
    """

    canvas: int
    low: float
    high: float
    antialias: bool = False

    def target(self, size: tuple[int, int]) -> tuple[int, int]:
        """A random new (height, width) for an image of ``size``."""
        ratio = self.low + (self.high - self.low) * torch.rand(()).item()
        side = max(int(self.canvas * ratio), 1)  # whole pixels, as mmdet
        return fitted_size(size, side, side)

    def __call__(self, sample: Sample) -> Sample:
        """Pick a ratio and resize."""
        return resize(sample, self.target(sample.size), self.antialias)


@dataclass(frozen=True)
class ResizeAndCrop:
    """``resize``, then ``crop``, equivalent to both in sequence, but masks are resized within the
    window only.
    """

    resize: RandomShortSide | ScaleJitter
    crop: RandomCrop

    def __call__(self, sample: Sample) -> Sample:
        """Resize and crop with a random size and window."""
        size = self.resize.target(sample.size)
        window = self.crop.window(size)
        return without_tiny_boxes(resize(sample, size, self.resize.antialias, window))


@dataclass(frozen=True)
class PadToCanvas:
    """Pad with grey at the bottom and right to a square canvas (pixels), all of it valid area."""

    canvas: int

    def __call__(self, sample: Sample) -> Sample:
        """Pad to the canvas, which must be at least as large as the image."""
        return padded(sample, 0, 0, (self.canvas, self.canvas))

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """See ``KnownSize``."""
        return self.canvas, self.canvas


@dataclass(frozen=True)
class EvalResize:
    """Resize to fit ``short`` and ``long`` sides (pixels), enlarging if need be. ``antialias`` as
    in ``resize``; it also selects DETR's rounding (``detr_size``).
    """

    short: int
    long: int
    antialias: bool = False

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """See ``KnownSize``."""
        return (detr_size if self.antialias else fitted_size)(size, self.short, self.long)

    def __call__(self, sample: Sample) -> Sample:
        """Resize."""
        return resize(sample, self.output_size(sample.size), self.antialias)


class DetrAugmentation(Chain):
    """DETR's recipe: flip, then with ``crop_probability`` resize, crop and resize, else resize
    only.

    ``shorts`` and ``long`` are those of the final resize; ``crop_shorts`` and ``crop_long`` those
    of the resize before the crop, whose sides are in ``crop_range`` (all in pixels). ``antialias``:
    see ``resize``. ``extra`` is a final torchvision v2 transform, such as ColorJitter. Source: DETR
    (arXiv 2005.12872) appendix A.4.
    """

    def __init__(
        self,
        shorts: Sequence[int],
        long: int,
        crop_shorts: Sequence[int],
        crop_long: int,
        crop_range: tuple[int, int],
        crop_probability: float = 0.5,
        flip: float = 0.5,
        extra: Callable[..., Any] | None = None,
        antialias: bool = False,
    ) -> None:
        resized = RandomShortSide(tuple(shorts), long, antialias)
        first = RandomShortSide(tuple(crop_shorts), crop_long, antialias)
        cropped = Chain((ResizeAndCrop(first, RandomCrop(*crop_range)), resized))
        last = () if extra is None else (Apply(extra),)
        super().__init__(
            (
                Apply(v2.RandomHorizontalFlip(flip)),
                Choice(cropped, resized, crop_probability),
                *last,
            )
        )


class FlipOnly(Chain):
    """Flip horizontally with probability ``flip``."""

    def __init__(self, flip: float = 0.5) -> None:
        super().__init__((Apply(v2.RandomHorizontalFlip(flip)),))


class LsjAugmentation(Chain):
    """Large-scale jitter: resize by ``ratio`` of the canvas, crop to it, flip, pad to it.

    ``canvas`` is the side of the square in pixels. Boxes in the crop are dropped if a side is not
    larger than ``min_box_px``, or if no pixel of their mask is left. A crop without boxes is used;
    if there are boxes but all are dropped, another image is drawn (mmdet: ``allow_negative_crop``,
    ``FilterAnnotations``). Source: Simple Copy-Paste (arXiv 2012.07177) section 3; for the pasting
    see ``codetr.data.copy_paste``.
    """

    def __init__(
        self,
        canvas: int,
        ratio: tuple[float, float] = (0.1, 2.0),
        flip: float = 0.5,
        min_box_px: float = 1e-2,
    ) -> None:
        super().__init__(
            (
                ResizeAndCrop(ScaleJitter(canvas, *ratio), RandomCrop(canvas, canvas)),
                KeepVisible(min_box_px),
                Apply(v2.RandomHorizontalFlip(flip)),
                PadToCanvas(canvas),
            )
        )


class LsjEval(Chain):
    """Resize to fit a square canvas (pixels) and pad it with grey."""

    def __init__(self, canvas: int) -> None:
        super().__init__((EvalResize(canvas, canvas), PadToCanvas(canvas)))


def _randint(low: int, high: int) -> int:
    """A random integer from low to high, both included."""
    return int(torch.randint(low, high + 1, ()).item())
