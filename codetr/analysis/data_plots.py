"""Figures for the page about a data set, as PNG and JPEG data."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2.functional import resize, to_pil_image

from codetr.analysis.data_facts import SplitFacts
from codetr.analysis.findings import colour, png
from codetr.data.annotations import CocoAnnotations
from codetr.data.images import DEFAULT_RULES, ImageError, PixelRules, read_annotated
from codetr.evaluation.figures import plain
from codetr.inference.draw import draw_boxes, grid

LONGEST_SIDE = 480
"""Longer side of a picture in the grid, in pixels."""

_MOST_CLASSES = 40  # more bars cannot be read


def class_figure(splits: Sequence[SplitFacts]) -> bytes:
    """A bar chart of boxes per class, the most frequent on top; with more than forty classes, the
    most and the least frequent ones.
    """
    totals = {
        name: sum(split.boxes_per_class.get(name, 0) for split in splits)
        for split in splits
        for name in split.boxes_per_class
    }
    names = sorted(totals, key=lambda name: (-totals[name], name))
    axis = "boxes"
    if len(names) > _MOST_CLASSES:
        axis = f"boxes of the {_MOST_CLASSES // 2} most and least frequent of {len(names)} classes"
        names = names[: _MOST_CLASSES // 2] + names[-_MOST_CLASSES // 2 :]
    figure = Figure(figsize=(7.5, 0.24 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names))
    left = np.zeros(len(names))
    for i, split in enumerate(splits):
        counts = np.array([split.boxes_per_class.get(name, 0) for name in names])
        axes.barh(places, counts, left=left, color=colour(i), label=plain(split.name))
        left += counts
    axes.set_yticks(places, [plain(name) for name in names], fontsize="small")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set(xlabel=axis)
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize="small", loc="lower right")
    return png(figure)


def box_figure(splits: Sequence[SplitFacts]) -> bytes:
    """Histograms of boxes per image and of box sizes and aspect ratios; a scatter plot of image
    sizes.
    """
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    per_image, size, aspect, image = figure.subplots(2, 2).flatten()
    most = max(int(split.boxes_per_image.max(initial=0)) for split in splits)
    for i, split in enumerate(splits):
        style = {"color": colour(i), "alpha": 0.55, "label": plain(split.name)}
        per_image.hist(
            split.boxes_per_image, np.linspace(-0.5, most + 0.5, min(most, 40) + 2), **style
        )
        size.hist(split.sides, np.linspace(0, 1, 41).tolist(), **style)
        aspect.hist(np.log2(split.aspects), np.linspace(-4, 4, 41).tolist(), **style)
        image.scatter(*split.image_sizes.T, s=12, **style)
    per_image.set(xlabel="boxes per image", ylabel="images")
    size.set(xlabel="box size: square root of its share of the image", ylabel="boxes")
    aspect.set(xlabel="width / height of a box", ylabel="boxes")
    aspect.set_xticks([-4, -2, -1, 0, 1, 2, 4], ["1/16", "1/4", "1/2", "1", "2", "4", "16"])
    image.set(xlabel="image width, pixels", ylabel="image height, pixels", xlim=(0, None))
    image.set_ylim(0, None)
    for axes in (per_image, size, aspect, image):
        axes.grid(alpha=0.3)
    names = per_image.get_legend_handles_labels()
    figure.legend(*names, fontsize="small", loc="outside lower center", ncols=len(splits))
    return png(figure)


def picture_grid(
    annotations: CocoAnnotations,
    images: Path,
    count: int,
    columns: int = 4,
    rules: PixelRules = DEFAULT_RULES,
) -> bytes:
    """``count`` images with their boxes as one JPEG, evenly spaced among the images with boxes;
    those that cannot be decoded are skipped. Empty if none is left.
    """
    pictures = []
    for index in annotations.images_with_objects(count):
        try:
            height, width = annotations.sizes[index].tolist()
            image = read_annotated(images / annotations.file_names[index], (height, width), rules)
        except ImageError:
            continue  # reported among the problems
        pictures.append(_picture(image, annotations, index))
    if not pictures:
        return b""
    target = BytesIO()
    to_pil_image(grid(pictures, columns)).save(target, format="JPEG", quality=85)
    return target.getvalue()


def _picture(image: Tensor, annotations: CocoAnnotations, index: int) -> Tensor:
    targets = annotations.targets(index)
    factor = min(1.0, LONGEST_SIDE / max(image.shape[1:]))
    size = [max(1, round(side * factor)) for side in image.shape[1:]]
    names = annotations.classes.names
    reduced = resize(image, size, antialias=True)
    return draw_boxes(
        reduced, targets.boxes * factor, targets.labels, names, min_side=LONGEST_SIDE // 2
    )
