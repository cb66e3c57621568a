"""Test-time augmentation: a finder that looks at an image in several ways.

A finder is a callable from uint8 RGB images (3, H, W) to their detections, in pixels of those
images; large ones may be files that are read in regions. What stands here takes finders and is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from codetr.data.regions import Regions
from codetr.errors import UserError
from codetr.inference.grouping import grouped
from codetr.masks import joined_masks
from codetr.nms import Nms, Suppress
from codetr.structures import Detections

SIDES = ("short", "long", "canvas")
"""What an evaluation's resize calls the pixels that it aims at."""


class Finder(Protocol):
    """Finds objects in images."""

    def __call__(self, images: Sequence[Regions]) -> tuple[Detections, ...]:
        """One ``Detections`` per uint8 image (3, H, W), on the CPU, best score first."""
        ...


@dataclass(frozen=True)
class Mirrored:
    """Looks at the images with left and right exchanged."""

    finder: Finder

    def __call__(self, images: Sequence[Regions]) -> tuple[Detections, ...]:
        """See ``Finder``."""
        found = self.finder([image.flip(-1) for image in images])
        return tuple(
            replace(
                one,
                boxes_xyxy_px=mirrored_boxes(one.boxes_xyxy_px, image.shape[-1]),
                cells=None if one.cells is None else one.cells.mirrored(),
            )
            for one, image in zip(found, images, strict=True)
        )


@dataclass(frozen=True)
class Several:
    """What several finders see in the same image, as one: at most ``limit`` detections."""

    finders: Sequence[Finder]
    suppress: Suppress
    limit: int

    def __call__(self, images: Sequence[Regions]) -> tuple[Detections, ...]:
        """See ``Finder``."""
        views = [finder(images) for finder in self.finders]
        return tuple(merged(view, self.suppress, self.limit) for view in zip(*views, strict=True))


@dataclass(frozen=True)
class Tiled:
    """Looks at large images in square tiles of ``tile`` pixels, and as a whole.

    Neighbouring tiles share at least ``overlap`` of a tile. A box that ends within ``border``
    pixels of a tile's edge, where the image goes on, is a cut object: it is dropped, since another
    tile has the whole of it, or the view of the whole image where it is larger than the overlap.
    Images that fit into one tile are looked at once; of others ``batch`` views are made at a time.
    Akyol et al., "Slicing Aided Hyper Inference" (arXiv 2202.06934), section 3, with that rule for
    cut objects.

    Raises UserError where a number is out of range.
    """

    finder: Finder
    suppress: Suppress
    limit: int
    tile: int
    overlap: float = 0.25
    border: float = 4.0
    batch: int = 1

    def __post_init__(self) -> None:
        if self.tile < 32:
            raise UserError(f"views.tile={self.tile}: give at least 32 pixels, or null for none")
        if not 0 <= self.overlap < 1:
            raise UserError(f"views.overlap={self.overlap}: give a share in [0, 1)")

    def __call__(self, images: Sequence[Regions]) -> tuple[Detections, ...]:
        """See ``Finder``."""
        return tuple(self._one(image) for image in images)

    def _one(self, image: Regions) -> Detections:
        height, width = image.shape[-2:]
        if max(height, width) <= self.tile:
            return self.finder([image])[0]
        corners = [
            (x, y)
            for y in tile_starts(height, self.tile, self.overlap)
            for x in tile_starts(width, self.tile, self.overlap)
        ]
        found: list[Detections] = []
        for group in grouped([*corners, None], self.batch):
            found += self.finder([self._view(image, corner) for corner in group])
        views = [
            self._whole_objects(one, corner, (width, height))
            for one, corner in zip(found, corners, strict=False)  # the last is the whole image
        ]
        return merged([*views, found[-1]], self.suppress, self.limit)

    def _view(self, image: Regions, corner: tuple[int, int] | None) -> Regions:
        """The tile whose top left is at ``corner`` (x, y), or the image."""
        if corner is None:
            return image
        x, y = corner
        return image[:, y : y + self.tile, x : x + self.tile]

    def _whole_objects(
        self, found: Detections, corner: tuple[int, int], image_wh: tuple[int, int]
    ) -> Detections:
        """A tile's detections without cut objects, in pixels of the image."""
        boxes = found.boxes_xyxy_px + torch.tensor(corner * 2).to(found.boxes_xyxy_px)
        whole = torch.ones(len(found), dtype=torch.bool)
        for axis, (start, size) in enumerate(zip(corner, image_wh, strict=True)):
            if start > 0:
                whole &= boxes[:, axis] > start + self.border
            if start + self.tile < size:
                whole &= boxes[:, axis + 2] < start + self.tile - self.border
        return replace(found, boxes_xyxy_px=boxes).take(whole)


@dataclass(frozen=True)
class Views:
    """Which views of an image to put together; by default the image alone.

    ``flip`` adds its mirror image; ``scales`` are factors of the checkpoint's image size, each a
    view ((1.0,) is that size alone); ``tile`` cuts larger images into tiles of so many pixels,
    which share ``overlap`` of a side; ``merge`` decides between the boxes of several views.
    """

    flip: bool = False
    scales: Sequence[float] = (1.0,)
    tile: int | None = None
    overlap: float = 0.25
    merge: Suppress = field(default_factory=Nms)

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"views.scales={list(self.scales)}: give factors above 0, such as [1]")

    @property
    def single(self) -> bool:
        """Whether each image is looked at once, as it is."""
        return not self.flip and self.tile is None and tuple(self.scales) == (1.0,)

    def resizes(self, resize: Mapping[str, Any], source: str) -> tuple[Mapping[str, Any], ...]:
        """The configuration of a resize at each scale; ``source`` names the checkpoint that it is
        of. Raises UserError where it aims at no size.
        """
        return tuple(scaled(resize, factor, source) for factor in self.scales)

    def compose(self, finders: Sequence[Finder], limit: int, batch: int = 1) -> Finder:
        """One finder from those of each scale; ``limit`` detections per image come out. ``batch``
        is how many images they take at a time.
        """
        seen = [*finders, *(Mirrored(finder) for finder in finders if self.flip)]
        finder = seen[0] if len(seen) == 1 else Several(seen, self.merge, limit)
        if self.tile is None:
            return finder
        return Tiled(finder, self.merge, limit, self.tile, self.overlap, batch=batch)


def tile_starts(size: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side of ``size`` pixels: evenly spread, the first at 0 and the
    last one's end at the side's, as few as share ``overlap`` of a tile at least.
    """
    if size <= tile:
        return [0]
    stride = max(1, int(tile * (1 - overlap)))
    gaps = -(-(size - tile) // stride)
    return [round(i * (size - tile) / gaps) for i in range(gaps + 1)]


def merged(views: Sequence[Detections], suppress: Suppress, limit: int) -> Detections:
    """The best ``limit`` detections of all ``views``, each object once."""
    boxes = torch.cat([view.boxes_xyxy_px for view in views])
    scores = torch.cat([view.scores for view in views])
    labels = torch.cat([view.labels for view in views])
    masks = joined_masks([view.cells for view in views])
    keep, decayed = suppress(boxes, scores, labels)
    if masks is not None:
        factor = decayed / scores[keep].clamp(min=torch.finfo(scores.dtype).tiny)
        masks = masks.map(lambda values: values[keep])
        masks = replace(masks, scores=masks.scores * factor)
    kept = Detections(boxes_xyxy_px=boxes[keep], scores=decayed, labels=labels[keep], cells=masks)
    return kept.take(slice(limit))


def mirrored_boxes(boxes_xyxy_px: Tensor, width: int) -> Tensor:
    """Boxes (n, 4) of the mirror image of an image of that width."""
    x0, y0, x1, y1 = boxes_xyxy_px.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=-1)


def scaled(resize: Mapping[str, Any], factor: float, source: str) -> Mapping[str, Any]:
    """A resize's configuration that aims at ``factor`` times as many pixels.

    Raises UserError where it aims at no size.
    """
    if factor == 1:
        return resize
    known = {key: max(1, round(resize[key] * factor)) for key in SIDES if key in resize}
    if not known:
        raise UserError(
            f"{source}: was evaluated on images of any size, which views.scales={factor} cannot "
            "scale: leave views.scales=[1]"
        )
    return {**resize, **known}
