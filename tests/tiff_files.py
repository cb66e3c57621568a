"""TIFF files in tiles or strips, which Pillow reads but does not write."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Tags = Mapping[int, "bytes | Sequence[int]"]

PER_FILE = {256, 257, 273, 278, 279}
"""Sides, strips and their sizes."""
FRACTIONS = {282, 283, 529, 532}
"""Resolution, and coefficients of colours that have their defaults."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a file is written: ``chunk`` (height, width) of its tiles, or strips of that height."""

    chunk: tuple[int, int]
    tiled: bool = True
    separate: bool = False
    orientation: int = 1
    big: bool = False

    def side(self, width: int) -> int:
        return self.chunk[1] if self.tiled else width


def write_image(
    path: Path,
    image: Image.Image,
    layout: Layout,
    compression: str | None = None,
    tags: Mapping[int, int] | None = None,
) -> Path:
    """``image`` in chunks that Pillow encodes; tiles that reach beyond it end in noise."""
    planes = image.split() if layout.separate else (image,)
    parts, coding, order = [], dict[int, Any](), b"II"
    for plane in planes:
        for top in range(0, image.height, layout.chunk[0]):
            for left in range(0, image.width, layout.side(image.width)):
                chunk = padded(plane, top, left, layout)
                part, coding, order = encoded(chunk, compression, tags)
                parts.append(part)
    if layout.separate:
        count = len(planes)
        coding |= {258: [8] * count, 277: [count], 284: [2], 262: [{"CMYK": 5}.get(image.mode, 2)]}
        coding |= {338: [2]} if image.mode == "RGBA" else {}
        coding.pop(339, None)
    return write_parts(path, image.size[::-1], layout, parts, coding, order)


def padded(image: Image.Image, top: int, left: int, layout: Layout) -> Image.Image:
    height, width = layout.chunk[0], layout.side(image.width)
    if not layout.tiled:
        return image.crop((0, top, width, min(top + height, image.height)))
    inner = image.crop((left, top, min(left + width, image.width), min(top + height, image.height)))
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 8), dtype=np.uint8)
    tile = Image.frombytes(image.mode, (width, height), noise.tobytes()[: size_of(image, layout)])
    if image.mode == "P":
        tile.putpalette(image.getpalette() or [])
    tile.paste(inner, (0, 0))
    return tile


def size_of(image: Image.Image, layout: Layout) -> int:
    """Bytes of a tile in memory."""
    return len(Image.new(image.mode, (layout.side(image.width), layout.chunk[0])).tobytes())


def encoded(
    image: Image.Image, compression: str | None, tags: Mapping[int, int] | None = None
) -> tuple[bytes, dict[int, Any], bytes]:
    """The bytes of one strip, all tags that say how, and the order of bytes."""
    file = BytesIO()
    image.save(file, "TIFF", compression=compression, strip_size=2**30, tiffinfo=dict(tags or {}))
    with Image.open(file) as written:
        found = dict(written.tag_v2)
        order = written.tag_v2.prefix
    (start,), (length,) = found[273], found[279]
    coding = {k: v if isinstance(v, bytes | tuple) else [v] for k, v in found.items()}
    coding = {k: v for k, v in coding.items() if k not in PER_FILE | FRACTIONS}
    return file.getvalue()[start : start + length], coding, order


def write_parts(
    path: Path,
    size: tuple[int, int],
    layout: Layout,
    parts: Sequence[bytes],
    coding: Tags,
    order: bytes = b"II",
) -> Path:
    """A TIFF file of ``size`` (height, width) with these chunks; equal ones are stored once."""
    endian = "<" if order == b"II" else ">"
    stored = dict.fromkeys(parts)
    at, places = 16, dict[bytes, int]()
    for part in stored:
        places[part], at = at, at + len(part)
    where = (324, 325) if layout.tiled else (273, 279)
    tags = {**coding, 256: [size[1]], 257: [size[0]], 274: [layout.orientation]}
    tags |= {322: [layout.chunk[1]], 323: [layout.chunk[0]]} if layout.tiled else {}
    tags |= {} if layout.tiled else {278: [layout.chunk[0]]}
    tags |= {where[0]: [places[p] for p in parts], where[1]: [len(p) for p in parts]}
    long, count, room = ("Q", "Q", 8) if layout.big else ("L", "H", 4)
    head = order + (
        struct.pack(f"{endian}HHHQ", 43, 8, 0, at)
        if layout.big
        else struct.pack(f"{endian}HL8x", 42, at)
    )
    entries = struct.pack(f"{endian}{count}", len(tags))
    after = at + len(entries) + len(tags) * (12 + 2 * (room - 4)) + room
    values = b""
    for tag, value in sorted(tags.items()):
        kind = 7 if isinstance(value, bytes) else 4
        data = value if isinstance(value, bytes) else struct.pack(f"{endian}{len(value)}L", *value)
        if len(data) > room:
            data, values = struct.pack(f"{endian}{long}", after + len(values)), values + data
        entries += struct.pack(f"{endian}HH{long}{room}s", tag, kind, len(value), data)
    path.write_bytes(head + b"".join(stored) + entries + bytes(room) + values)
    return path
