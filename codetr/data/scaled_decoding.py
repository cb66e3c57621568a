"""The smallest size at which a JPEG may be decoded: that of the first resize of its
augmentation.
"""

from __future__ import annotations

import torch
from torchvision.transforms import v2

from codetr.data.augment import (
    Apply,
    Augmentation,
    Chain,
    Choice,
    EvalResize,
    RandomShortSide,
    ResizeAndCrop,
    ScaleJitter,
)


def first_size(augmentation: Augmentation, size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that an image of ``size`` is first resized to, or ``size`` if its pixels
    are processed before that.

    Restores torch's generator, so that the augmentation draws the same numbers.
    """
    state = torch.get_rng_state()
    found = _first_size(augmentation, size)
    torch.set_rng_state(state)
    return found or size


def _first_size(step: Augmentation, size: tuple[int, int]) -> tuple[int, int] | None:
    """The size after the first resize in ``step``; None if it only flips."""
    match step:
        case Chain():
            return next(filter(None, (_first_size(part, size) for part in step.steps)), None)
        case Choice():
            return _first_size(step.choose(), size)
        case ResizeAndCrop():
            return step.resize.target(size)
        case RandomShortSide() | ScaleJitter():
            return step.target(size)
        case EvalResize():
            return step.output_size(size)
        case Apply(operation=v2.RandomHorizontalFlip() | v2.RandomVerticalFlip()):
            step.operation(torch.zeros(3, 1, 1, dtype=torch.uint8))  # advances the generator
            return None
    return size
