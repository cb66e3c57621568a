"""Preprocessing of images without annotations."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from codetr.data.augment import Augmentation, Chain, EvalResize
from codetr.data.regions import Regions
from codetr.data.resize import resize_regions
from codetr.data.sample import Sample, as_sample


def prepared(image: Regions, preprocess: Augmentation) -> Sample:
    """The sample of ``image`` after ``preprocess``. If that begins with an ``EvalResize``, an image
    that is read in regions is never completely in memory.
    """
    if isinstance(image, Tensor):
        return preprocess(as_sample(image))
    steps = preprocess.steps if isinstance(preprocess, Chain) else (preprocess,)
    first = next(iter(steps), None)
    if not isinstance(first, EvalResize):
        return preprocess(as_sample(image[:, :, :]))
    height, width = image.shape[-2:]
    size = first.output_size((height, width))
    small = as_sample(resize_regions(image, size, first.antialias))
    scale = size[1] / width, size[0] / height
    return Chain(steps[1:])(replace(small, original_size=(height, width), scale=scale))
