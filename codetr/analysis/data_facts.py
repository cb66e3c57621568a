"""Statistics of a split of a data set, and a list of its problems."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codetr.data.annotations import CocoAnnotations
from codetr.data.images import DEFAULT_RULES, ImageError, PixelRules, read_annotated

TINY_PX = 2.0
"""Boxes with a shorter side than this are reported: they are rarely intended."""

Advance = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """Statistics of one split with A usable boxes and I images.

    ``boxes_per_class`` by class name; ``boxes_per_image`` (I,); ``sides`` (A,) square root of the
    share of the image's area; ``aspects`` (A,) width over height; ``image_sizes`` (I, 2) width and
    height in pixels; ``problems``, each with its file; ``pixels``: file name by hash of the pixels.
    """

    name: str
    images: int
    boxes: int
    ignored: int
    boxes_per_class: Mapping[str, int]
    boxes_per_image: NDArray[np.int64]
    sides: NDArray[np.float64]
    aspects: NDArray[np.float64]
    image_sizes: NDArray[np.int64]
    problems: tuple[str, ...]
    pixels: Mapping[str, str]

    @property
    def images_without_boxes(self) -> int:
        """Images with no usable box."""
        return int((self.boxes_per_image == 0).sum())


def gather_facts(
    name: str,
    annotations: CocoAnnotations,
    images: Path,
    advance: Advance = lambda: None,
    rules: PixelRules = DEFAULT_RULES,
) -> SplitFacts:
    """Gather the statistics of a split and decode every image; ``advance`` is called after each."""
    usable = annotations.usable
    boxes, labels = annotations.clipped[usable].double(), annotations.labels[usable]
    image_of_box = annotations.image_of_box[usable]
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    area = annotations.sizes.prod(dim=1)[image_of_box]
    counts = torch.bincount(labels, minlength=len(annotations.classes)).tolist()
    pixels: dict[str, str] = {}
    broken = list(_check_images(annotations, images, pixels, advance, rules))
    return SplitFacts(
        name=name,
        images=len(annotations),
        boxes=int(usable.sum()),
        ignored=int(annotations.crowd.sum()),
        boxes_per_class=dict(zip(_distinct(annotations.classes.names), counts, strict=True)),
        boxes_per_image=torch.bincount(image_of_box, minlength=len(annotations)).numpy(),
        sides=(width * height / area).sqrt().numpy(),
        aspects=(width / height).numpy(),
        image_sizes=annotations.sizes.flip(1).numpy(),
        problems=(*broken, *_check_boxes(annotations)),
        pixels=pixels,
    )


def shared_images(first: SplitFacts, second: SplitFacts) -> list[str]:
    """A line for every image that is in both splits with the same pixels."""
    return [
        f"{second.pixels[digest]}: the same image as {first.pixels[digest]} in {first.name}: "
        f"results on {second.name} will be too good"
        for digest in first.pixels.keys() & second.pixels.keys()
    ]


def _distinct(names: tuple[str, ...]) -> list[str]:
    """Names, numbered where two classes share one."""
    return [n if names.count(n) == 1 else f"{n} (class {i})" for i, n in enumerate(names)]


def _check_images(
    annotations: CocoAnnotations,
    images: Path,
    pixels: dict[str, str],
    advance: Advance,
    rules: PixelRules,
) -> Iterator[str]:
    """A line for every file that cannot be decoded, has another size than annotated, or has the
    pixels of an earlier one.
    """
    for name, (height, width) in zip(
        annotations.file_names, annotations.sizes.tolist(), strict=True
    ):
        try:
            image = read_annotated(images / name, (height, width), rules)
        except ImageError as error:
            yield f"{name}: {error}"
        else:
            content = str(tuple(image.shape)).encode() + image.numpy().tobytes()
            first = pixels.setdefault(hashlib.sha1(content).hexdigest(), name)
            if first != name:
                yield f"{name}: the same image as {first}"
        advance()


def _check_boxes(annotations: CocoAnnotations) -> Iterator[str]:
    """A line for every box without area, beyond its image, tiny, or duplicate."""
    boxes, usable = annotations.boxes, annotations.usable
    shorter = (annotations.clipped[:, 2:] - annotations.clipped[:, :2]).amin(dim=1)
    flaws = {
        "has no area within the image": annotations.without_area,
        "reaches beyond the image": annotations.outside,
        f"is less than {TINY_PX:g} pixels wide or high": (shorter < TINY_PX) & usable,
        "is a duplicate": _repeated(annotations) & usable,
    }
    image_of_box = annotations.image_of_box.tolist()
    for text, flawed in flaws.items():
        for row in flawed.nonzero().flatten().tolist():
            corners = ", ".join(f"{value:.1f}" for value in boxes[row].tolist())
            label = annotations.classes.names[int(annotations.labels[row])]
            yield f"{annotations.file_names[image_of_box[row]]}: {label} ({corners}) {text}"


def _repeated(annotations: CocoAnnotations) -> Tensor:
    """(A,) bool: whether an earlier box of the image has the same class and corners."""
    keys = torch.cat(
        [annotations.image_of_box[:, None], annotations.labels[:, None], annotations.boxes], dim=1
    )
    first: dict[tuple[float, ...], int] = {}
    rows = [first.setdefault(tuple(key), i) for i, key in enumerate(keys.double().tolist())]
    return torch.tensor(rows, dtype=torch.int64) != torch.arange(len(rows))
