"""Test-time augmentation: detection in several views of an image.

A finder is a callable from uint8 RGB images (3, H, W) to their detections, in pixels of those
images; large images may be files that are read in regions. The classes here are finders that
wrap other finders.
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
"""Arguments of an evaluation's resize that are target sizes in pixels."""


class Finder(Protocol):
    """Finds objects in images."""

    def __call__(self, images: Sequence[Regions]) -> tuple[Detections, ...]:
        """One ``Detections`` per uint8 image (3, H, W), on the CPU, best score first."""
        ...


@dataclass(frozen=True)
class Mirrored:
    """Detects objects in the horizontally flipped images."""

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
    """Merges the detections of several finders to at most ``limit`` per image."""

    finders: Sequence[Finder]
    suppress: Suppress
    limit: int

    def __call__(self, images: Sequence[Regions]) -> tuple[Detections, ...]:
        """See ``Finder``."""
        views = [finder(images) for finder in self.finders]
        return tuple(merged(view, self.suppress, self.limit) for view in zip(*views, strict=True))


@dataclass(frozen=True)
class Tiled:
    """Detects objects in square tiles of large images, ``tile`` pixels wide, and in whole images.

    Neighbouring tiles overlap by at least the share ``overlap`` of their side. A box that ends
    within ``border`` pixels of a tile's edge, unless that is the edge of the image, is a truncated
    object and is dropped: another tile contains all of it or, if it is larger than the overlap, the
    view of the whole image does. Images that fit into one tile are processed once; ``batch`` views
    of other images are created at a time. Akyol et al., "Slicing Aided Hyper Inference" (arXiv
    2202.06934), section 3; the rule for truncated objects is ours.

    Raises UserError if a number is out of range.
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
        """The tile with its top left at ``corner`` (x, y); the whole image for None."""
        if corner is None:
            return image
        x, y = corner
        return image[:, y : y + self.tile, x : x + self.tile]

    def _whole_objects(
        self, found: Detections, corner: tuple[int, int], image_wh: tuple[int, int]
    ) -> Detections:
        """A tile's detections without truncated objects, in pixels of the image."""
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
    """The views of an image whose detections are merged; by default the image only.

    ``flip`` adds the horizontally flipped image; ``scales`` are factors of the checkpoint's image
    size, with a view for each; ``tile`` divides larger images into tiles of that many pixels, which
    overlap by the share ``overlap`` of their side; ``merge`` suppresses duplicates between views.
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
        """Whether the only view is the unchanged image."""
        return not self.flip and self.tile is None and tuple(self.scales) == (1.0,)

    def resizes(self, resize: Mapping[str, Any], source: str) -> tuple[Mapping[str, Any], ...]:
        """The configuration of a resize at each scale; ``source`` is the checkpoint's name in
        messages. Raises UserError if the resize has no target size.
        """
        return tuple(scaled(resize, factor, source) for factor in self.scales)

    def compose(self, finders: Sequence[Finder], limit: int, batch: int = 1) -> Finder:
        """A finder for all views from those of each scale, with at most ``limit`` detections per
        image. ``batch``: number of images that ``finders`` process at a time.
        """
        seen = [*finders, *(Mirrored(finder) for finder in finders if self.flip)]
        finder = seen[0] if len(seen) == 1 else Several(seen, self.merge, limit)
        if self.tile is None:
            return finder
        return Tiled(finder, self.merge, limit, self.tile, self.overlap, batch=batch)


def tile_starts(size: int, tile: int, overlap: float) -> list[int]:
    """The first pixels of the tiles along a side of ``size`` pixels: evenly spaced from edge to
    edge, with the smallest number of tiles that overlap by at least the share ``overlap``.
    """
    if size <= tile:
        return [0]
    stride = max(1, int(tile * (1 - overlap)))
    gaps = -(-(size - tile) // stride)
    return [round(i * (size - tile) / gaps) for i in range(gaps + 1)]


def merged(views: Sequence[Detections], suppress: Suppress, limit: int) -> Detections:
    """The best ``limit`` detections of all ``views`` after suppression of duplicates."""
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
    """Boxes (n, 4) in the horizontally flipped image of ``width`` pixels."""
    x0, y0, x1, y1 = boxes_xyxy_px.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=-1)


def scaled(resize: Mapping[str, Any], factor: float, source: str) -> Mapping[str, Any]:
    """A resize's configuration with its target sizes multiplied by ``factor``.

    Raises UserError if it has none.
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
