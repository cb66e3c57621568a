"""Reading regions of large TIFF files, by decoding the tiles or strips that a region touches."""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import accumulate, product
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL import TiffImagePlugin as Tiff
from torch import Tensor

from codetr.data.files import register_plugins
from codetr.data.images import (
    ON_THEIR_SIDE,
    PixelRules,
    as_rgb,
    depth,
    geometry,
    naming,
    read_image,
    require_smaller,
    unlimited,
)

log = logging.getLogger(__name__)

LARGE = 2**25
"""Pixels of an image up to which files are decoded as a whole."""
MOST_PIXELS, MOST_CHUNKS, CHUNK_PIXELS = 2**34, 2**20, 2**24
"""Limits: pixels of an image, number of its tiles or strips, and pixels of one of these. Larger
files, since even a small file can claim any size, are decoded as a whole if that is allowed.
"""

COMPRESSION, COLOURS, SAMPLES, PLANES = 259, 262, 277, 284
CODING = (258, COMPRESSION, COLOURS, 266, SAMPLES, PLANES, 292, 293, 317, 320, 332, 338, 339, 347)
"""Tags that define how pixels are stored (TIFF 6.0, part 2; 347 are JPEG's tables)."""
OLD_JPEG, JPEG = 6, 7
"""Values of COMPRESSION."""
YCBCR, SEPARATE = 6, 2
"""Values of COLOURS and PLANES."""


def open_image(path: Path, rules: PixelRules) -> Regions:
    """The image as returned by ``read_image`` or, with ``rules.in_regions`` and for a large TIFF
    that allows it, as a ``TiffImage`` with the same pixels, which decodes regions on demand.

    Raises ImageError as ``read_image``; the maximum size of a ``TiffImage`` applies to its regions.
    """
    return (rules.in_regions and _open_tiff(path, rules)) or read_image(path, rules)


class TiffImage:
    """A TIFF file with the part of the interface of a uint8 RGB tensor (3, H, W) that ``Finder``
    and resizing need. ``image[:, top:bottom, left:right]`` decodes the tiles or strips that it
    touches; those of the last region are cached.

    Indexing raises ImageError if that part of the file is damaged, or if the tiles or strips have
    more pixels than ``rules`` allow, since all of them are in memory at once.
    """

    def __init__(self, file: _Chunks, orientation: int, rules: PixelRules) -> None:
        self._file, self._orientation, self._rules = file, orientation, rules
        self._kept: dict[tuple[int, int], NDArray[np.uint8]] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, H, W)."""
        turned = self._orientation in ON_THEIR_SIDE
        return (3, *(self._file.size[::-1] if turned else self._file.size))

    def flip(self, dim: int) -> TiffImage:
        """The horizontally flipped image; ``dim`` must be -1."""
        assert dim == -1, dim
        return TiffImage(self._file, (self._orientation - 1 ^ 1) + 1, self._rules)

    def __getitem__(self, window: tuple[slice, slice, slice]) -> Tensor:
        """Pixels of the upright image: ``image[:, top:bottom, left:right]``."""
        _, height, width = self.shape
        top, bottom, _ = window[1].indices(height)
        left, right, _ = window[2].indices(width)
        # The axes of the upright image are those of the file, swapped for the last four
        # orientations; each may be reversed.
        down, across = self._orientation in (3, 4, 7, 8), self._orientation in (2, 3, 6, 7)
        rows = (height - bottom, height - top) if down else (top, bottom)
        columns = (width - right, width - left) if across else (left, right)
        with naming(self._file.path):
            if self._orientation in ON_THEIR_SIDE:
                pixels = self._stored(columns, rows).permute(2, 1, 0)
            else:
                pixels = self._stored(rows, columns).permute(2, 0, 1)
        reversed_axes = [axis for axis, back in ((1, down), (2, across)) if back]
        return pixels.flip(reversed_axes) if reversed_axes else pixels

    def _stored(self, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """The pixels (h, w, 3) of a window in the stored orientation."""
        height, width = self._file.chunk
        down, across = _touched(rows, height), _touched(columns, width)
        touched = (
            min(down.stop * height, self._file.size[0]) - down.start * height,
            min(across.stop * width, self._file.size[1]) - across.start * width,
        )
        where = " in the tiles or strips of a region"
        require_smaller(self._file.path, touched, self._rules, where)
        needed = list(product(down, across))
        self._kept = {place: self._kept[place] for place in needed if place in self._kept}
        out = np.empty((rows[1] - rows[0], columns[1] - columns[0], 3), np.uint8)
        for place in needed:
            if place not in self._kept:
                image = as_rgb(self._file.decoded(*place), self._rules.grey_bits)
                self._kept[place] = np.asarray(image)
            (y, ys), (x, xs) = _shared(rows, place[0] * height), _shared(columns, place[1] * width)
            part = self._kept[place][ys, xs]
            out[y : y + part.shape[0], x : x + part.shape[1]] = part
        return torch.from_numpy(out)


def _touched(wanted: tuple[int, int], side: int) -> range:
    """The indices of the chunks of ``side`` pixels that an interval overlaps."""
    return range(wanted[0] // side, -(-wanted[1] // side))


def _shared(wanted: tuple[int, int], start: int) -> tuple[int, slice]:
    """The position in an interval of the chunk that begins at ``start``, and the part of the chunk
    that overlaps.
    """
    return max(start - wanted[0], 0), slice(max(wanted[0] - start, 0), wanted[1] - start)


Regions = Tensor | TiffImage
"""A uint8 RGB image (3, H, W) that can be sliced."""


class _Whole(Exception):
    """The reason why a file has to be decoded as a whole."""


@dataclass(frozen=True)
class _Chunks:
    """The tiles or strips of a TIFF file, row by row: ``size`` and ``chunk`` are the stored
    (height, width) of the image and of each of them. With separate planes, all chunks of a plane
    precede those of the next one. ``coding``: the tags needed for decoding; ``order``: the byte
    order mark.
    """

    path: Path
    order: bytes
    size: tuple[int, int]
    chunk: tuple[int, int]
    tiled: bool
    offsets: Sequence[int]
    lengths: Sequence[int]
    coding: Mapping[int, bytes | tuple[int, ...]]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of chunks."""
        return -(-self.size[0] // self.chunk[0]), -(-self.size[1] // self.chunk[1])

    def decoded(self, row: int, column: int) -> Image.Image:
        """The part of the image in a chunk; the last chunks of rows and columns may extend beyond
        the image. Damaged files cause many types of exceptions.
        """
        rows, columns = self.grid
        height = min(self.chunk[0], self.size[0] - row * self.chunk[0])
        width = min(self.chunk[1], self.size[1] - column * self.chunk[1])
        stored = (self.chunk[0] if self.tiled else height, self.chunk[1])
        planes = range(row * columns + column, len(self.offsets), rows * columns)
        with self.path.open("rb") as file:
            parts = [_read(file, self.offsets[i], self.lengths[i]) for i in planes]
        alone = BytesIO(_tiff(self.order, self.coding, stored, parts))
        with unlimited(), Image.open(alone, formats=["TIFF"]) as image:
            return image.crop((0, 0, width, height))


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    found = file.read(length)
    if len(found) < length:
        raise OSError("the file ends too early")
    return found


def _tiff(
    order: bytes,
    coding: Mapping[int, bytes | tuple[int, ...]],
    size: tuple[int, int],
    parts: Sequence[bytes],
) -> bytes:
    """A TIFF file with a single strip of ``size`` (height, width), one of ``parts`` per plane:
    header, pixels, directory of tags, and values of more than four bytes.
    """
    endian = "<" if order == b"II" else ">"
    starts = accumulate((len(part) for part in parts[:-1]), initial=8)
    tags = {
        **coding,
        Tiff.IMAGELENGTH: size[:1],
        Tiff.IMAGEWIDTH: size[1:],
        Tiff.ROWSPERSTRIP: size[:1],
        Tiff.STRIPOFFSETS: tuple(starts),
        Tiff.STRIPBYTECOUNTS: tuple(map(len, parts)),
    }
    pixels = b"".join(parts)
    pixels += bytes(len(pixels) % 2)  # offsets must be even
    directory = 8 + len(pixels)
    values_at = directory + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, value in sorted(tags.items()):
        count = len(value)
        kind, data = (7, value) if isinstance(value, bytes) else (4, _longs(endian, value))
        if len(data) > 4:
            values += bytes(len(values) % 2)
            data, values = _longs(endian, [values_at + len(values)]), values + data
        entries += struct.pack(f"{endian}HHL4s", tag, kind, count, data)
    header = order + struct.pack(f"{endian}HL", 42, directory)
    return b"".join(
        (header, pixels, struct.pack(f"{endian}H", len(tags)), entries, bytes(4), values)
    )


def _longs(endian: str, numbers: Sequence[int]) -> bytes:
    return struct.pack(f"{endian}{len(numbers)}L", *numbers)


def _open_tiff(path: Path, rules: PixelRules) -> TiffImage | None:
    """The TIFF file at ``path``; None if it has to be decoded as a whole."""
    register_plugins()
    try:
        with unlimited(), Image.open(path) as file:
            size, orientation = geometry(file)
            if not isinstance(file, Tiff.TiffImageFile) or size[0] * size[1] <= LARGE:
                return None
            try:
                chunks = _chunks(path, file, orientation)
            except (KeyError, TypeError, ValueError) as error:
                raise _Whole(f"its tags are not those of a TIFF ({error!r})") from error
            deep = file.mode.startswith("I")
    except _Whole as why:
        log.info("%s is decoded as a whole, also for its tiles: %s", path, why)
        return None
    except Exception:  # ``read_image`` reports what is wrong
        return None
    if deep and rules.grey_bits is None:
        with naming(path):
            decoded = (chunks.decoded(*place) for place in product(*map(range, chunks.grid)))
            brightest = max(int(np.asarray(image).max(initial=0)) for image in decoded)
        rules = replace(rules, grey_bits=depth(brightest))
    return TiffImage(chunks, orientation, rules)


def _chunks(path: Path, file: Tiff.TiffImageFile, orientation: int) -> _Chunks:
    """The tiles or strips of a TIFF file. Raises _Whole if they cannot be decoded separately."""
    tags = file.tag_v2
    height, width = tags[Tiff.IMAGELENGTH], tags[Tiff.IMAGEWIDTH]
    tiled = Tiff.TILEOFFSETS in tags
    if tiled:
        chunk = tags.get(Tiff.TILELENGTH, 0), tags.get(Tiff.TILEWIDTH, 0)
        places = tags[Tiff.TILEOFFSETS], tags.get(Tiff.TILEBYTECOUNTS, ())
    else:
        chunk = min(tags.get(Tiff.ROWSPERSTRIP, height), height), width
        places = tags.get(Tiff.STRIPOFFSETS, ()), tags.get(Tiff.STRIPBYTECOUNTS, ())
    if min(chunk) < 1 or chunk[0] * chunk[1] > CHUNK_PIXELS:
        raise _Whole(f"it is stored in parts of {chunk[1]}x{chunk[0]} pixels")
    coding = {tag: tags[tag] for tag in CODING if tag in tags}
    coding = {tag: (value,) if isinstance(value, int) else value for tag, value in coding.items()}
    found = _Chunks(path, tags.prefix, (height, width), chunk, tiled, *places, coding)

    separate = tags.get(PLANES) == SEPARATE
    rows, columns = found.grid
    expected = rows * columns * (tags.get(SAMPLES, 1) if separate else 1)
    counted = len(found.offsets) == len(found.lengths) == expected
    if not counted or min(found.lengths, default=0) < 1:
        raise _Whole("its list of tiles or strips does not fit its size")
    if height * width > MOST_PIXELS or expected > MOST_CHUNKS:
        raise _Whole(f"it has {height * width} pixels in {expected} parts")
    compression, jpeg = tags.get(COMPRESSION), tags.get(COMPRESSION) == JPEG and not separate
    if compression == OLD_JPEG or (tags.get(COLOURS) == YCBCR and not jpeg):
        raise _Whole(f"it stores YCbCr colours with compression {compression}")
    if not tiled and orientation in ON_THEIR_SIDE:
        raise _Whole("EXIF turns its strips by 90 degrees")
    return found
