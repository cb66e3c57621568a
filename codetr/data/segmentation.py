"""Instance masks of an annotation file: stored as compact outlines, drawn when an image is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from faster_coco_eval.mask_api_new_cpp import toUncompressedRLE
from numpy.typing import NDArray
from torch import Tensor

from codetr.data.outlines import polygons_of
from codetr.errors import UserError

RunLengths = Mapping[str, Any]
"""An RLE of pycocotools: ``size`` [height, width] and compressed ``counts`` as bytes."""

_LIMIT = 2**31  # of int32 coordinates


@dataclass(frozen=True, kw_only=True)
class Segmentations:
    """The outlines of A annotations: polygons in flat tensors, which data workers share.

    ``coordinates`` (P,) x, y, x, y, ...: int32 hundredths of a pixel, the precision of COCO and
    LVIS, in half the memory of doubles, or float64 pixels if the file is more precise. Polygon g
    owns those from ``polygon_offsets[g]`` to ``polygon_offsets[g + 1]``; annotation a owns the
    polygons from ``object_offsets[a]`` to ``object_offsets[a + 1]``, or an entry of ``encoded``
    (COCO's compressed run lengths), or nothing (crowd regions).
    """

    coordinates: Tensor
    polygon_offsets: Tensor
    object_offsets: Tensor
    encoded: Mapping[int, RunLengths]

    def masks(self, rows: Sequence[int], size: tuple[int, int]) -> Tensor:
        """(N, H, W) uint8 masks, 1 on the object, of the annotations ``rows`` (N) in an image of
        ``size`` (height, width), drawn as pycocotools does.
        """
        masks = np.zeros((len(rows), *size), dtype=np.uint8)
        for mask, row in zip(masks, rows, strict=True):
            if row in self.encoded:
                mask[:] = rle.decode(self.encoded[row])
            else:
                self._draw(row, mask)
        return torch.from_numpy(masks)

    def polygons(self, row: int) -> list[list[float]]:
        """The polygons of an annotation as x, y, x, y, ... in pixels of the file; empty for encoded
        objects and crowd regions.
        """
        whole = self.coordinates.dtype == torch.int32
        return [
            (points.double() / 100 if whole else points).flatten().tolist()
            for points in self._outlines(row)
        ]

    def _outlines(self, row: int) -> list[Tensor]:
        """The vertices (P, 2) of each polygon, in the type and unit of ``coordinates``."""
        start, end = self.object_offsets[row : row + 2].tolist()
        offsets = self.polygon_offsets[start : end + 1].tolist()
        return [self.coordinates[low:high].view(-1, 2) for low, high in pairwise(offsets)]

    def _draw(self, row: int, mask: NDArray[np.uint8]) -> None:
        """Draw the outlines of an annotation as run lengths of the whole image, and decode only the
        columns of the object, since most objects are small.

        Drawing in a window around the object would not be equivalent: ties are rounded differently.
        """
        polygons = self.polygons(row)
        if not polygons:
            return
        height, width = mask.shape
        drawn = rle.merge(rle.frPyObjects(polygons, height, width))
        (runs,) = toUncompressedRLE([drawn])
        ends = np.cumsum(runs["counts"])  # alternating between background and object
        of_object = ends[1::2]
        if len(of_object):
            left, right = ends[0] // height, -(-of_object[-1] // height)
            lengths = np.diff(ends.clip(left * height, right * height), prepend=left * height)
            values = (np.arange(len(ends)) % 2).astype(np.uint8)
            mask[:, left:right] = np.repeat(values, lengths).reshape(-1, height).T


def read_segmentations(
    annotations: Sequence[Mapping[str, Any]], crowd: Tensor, sizes: Tensor, path: Path
) -> Segmentations:
    """Read the ``segmentation`` of COCO ``annotations`` (A), whose images have ``sizes`` (A, 2)
    int64 (height, width). Raises UserError for an object (not a ``crowd`` (A,) region) without a
    usable one.
    """
    coordinates: list[NDArray[np.float64]] = []
    lengths, object_offsets = [0], [0]
    encoded: dict[int, RunLengths] = {}
    rows = zip(annotations, crowd.tolist(), sizes.tolist(), strict=True)
    for row, (annotation, of_many, size) in enumerate(rows):
        if not of_many:
            value = annotation.get("segmentation")
            try:
                if isinstance(value, Mapping):
                    encoded[row] = compressed(value, size)
                else:
                    polygons = read_polygons(value)
                    coordinates.extend(polygons)
                    lengths.extend(len(polygon) for polygon in polygons)
            except (TypeError, ValueError, KeyError, IndexError) as error:
                raise UserError(
                    f"annotation {annotation.get('id')} in {path} has no usable segmentation "
                    f"({error}), which masks and copy-paste need: add polygons or run lengths, or "
                    "set masks=null, data.masks=false and augmentation.mix=null"
                ) from None
        object_offsets.append(len(coordinates))
    return Segmentations(
        coordinates=_table(coordinates),
        polygon_offsets=torch.tensor(lengths).cumsum(0),
        object_offsets=torch.tensor(object_offsets),
        encoded=encoded,
    )


def read_polygons(value: Any) -> list[NDArray[np.float64]]:
    """``polygons_of`` an object as x, y, x, y, ...; raises ValueError too where one lies too far
    outside of any image.
    """
    polygons = [polygon.ravel() for polygon in polygons_of(value)]
    if any(np.abs(polygon).max() * 100 >= _LIMIT for polygon in polygons):
        raise ValueError("a polygon is far outside the image")
    return polygons


def _table(polygons: list[NDArray[np.float64]]) -> Tensor:
    """All coordinates in the representation of ``Segmentations``."""
    pixels = np.concatenate([np.zeros(0), *polygons])
    hundredths = np.rint(pixels * 100)
    if (hundredths / 100 == pixels).all():
        return torch.from_numpy(hundredths.astype(np.int32))
    return torch.from_numpy(pixels)


def compressed(value: Mapping[str, Any], size: list[int]) -> RunLengths:
    """Run lengths as in COCO, compressed or not, in the compressed form. Raises ValueError,
    TypeError or KeyError unless they are those of an image of ``size`` (height, width).
    """
    if not isinstance(value["size"], Sequence) or list(value["size"]) != size:
        raise ValueError(f"run lengths of size {value['size']} in an image of size {size}")
    counts = value["counts"]
    try:
        if isinstance(counts, list):
            found = rle.frPyObjects({"size": size, "counts": counts}, *size)
        else:
            text = counts.encode() if isinstance(counts, str) else counts
            found = {"size": size, "counts": text}
        (runs,) = toUncompressedRLE([found])
    except (RuntimeError, OverflowError):
        raise ValueError("damaged run lengths") from None
    if sum(runs["counts"]) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(runs['counts'])} pixels in an image of size {size}")
    return found  # type: ignore[no-any-return]
