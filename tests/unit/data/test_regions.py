"""Regions of TIFF files are those of the whole, however the file is stored."""

from __future__ import annotations

import logging
import struct
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiff_files import Layout, encoded, write_image, write_parts
from torch import Tensor
from torchvision.transforms import v2

from codetr.data import regions
from codetr.data.augment import Apply, Augmentation, Chain, EvalResize, LsjEval, PadToCanvas
from codetr.data.images import ImageError, PixelRules, read_image
from codetr.data.prepare import prepared
from codetr.data.regions import TiffImage, open_image
from codetr.data.sample import as_sample

RULES = PixelRules(in_regions=True)
SIZE = (70, 90)
LOSSLESS = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma")
FAX = ("group3", "group4", "tiff_ccitt")
WAYS = [
    *(("RGB", way) for way in LOSSLESS),
    *((mode, way) for mode in ("L", "P", "I;16", "I;16B", "I") for way in (None, "tiff_lzw")),
    *((mode, way) for mode in ("RGBA", "LA", "CMYK") for way in (None, "tiff_lzw", "jpeg")),
    *(("1", way) for way in (None, "tiff_lzw", *FAX)),
    *((mode, "jpeg") for mode in ("RGB", "L", "YCbCr")),
]


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "LARGE", 0)


def picture(mode: str, size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth, with some noise."""
    y, x = np.mgrid[: size[0], : size[1]]
    noise = np.random.default_rng(0).integers(0, 9, (*size, 3))
    pixels = (np.stack([2 * x, 3 * y, x + y], axis=2) + noise).clip(0, 255).astype(np.uint8)
    if mode == "I":
        return Image.fromarray(pixels[..., 0].astype(np.int32) * 13)
    if mode.startswith("I;16"):
        kind = np.dtype(">u2" if mode == "I;16B" else "<u2")
        return Image.fromarray((pixels[..., 0].astype(np.uint16) * 13).astype(kind))
    return Image.fromarray(pixels).convert(mode)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    tiled = draw(st.booleans())
    return Layout(
        chunk=draw(st.sampled_from([(32, 48), (64, 32), (80, 96)])),
        tiled=tiled,
        separate=draw(st.booleans()),
        orientation=draw(st.integers(1, 8 if tiled else 4)),
        big=draw(st.booleans()),
    )


def interval(side: int) -> st.SearchStrategy[slice]:
    ends = st.tuples(st.integers(0, side - 1), st.integers(1, side))
    return ends.filter(lambda pair: pair[0] < pair[1]).map(lambda pair: slice(*pair))


@pytest.mark.parametrize(("mode", "compression"), WAYS)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(layout=layouts(), predictor=st.sampled_from([1, 2]), data=st.data())
def test_a_region_is_that_of_the_whole(
    tmp_path: Path,
    mode: str,
    compression: str | None,
    layout: Layout,
    predictor: int,
    data: st.DataObject,
) -> None:
    image = picture(mode)
    if mode not in ("RGB", "RGBA", "CMYK") or compression == "jpeg":
        layout = replace(layout, separate=False)
    if mode == "I;16B":  # Pillow reads no BigTIFF of that order
        layout = replace(layout, big=False)
    differences = compression in ("tiff_lzw", "tiff_adobe_deflate") and mode != "1"
    tags = {317: predictor} if differences else {}
    path = write_image(tmp_path / "a.tif", image, layout, compression, tags)
    whole = read_image(path)
    found = open_image(path, RULES)
    assert isinstance(found, TiffImage)
    assert tuple(found.shape) == whole.shape
    mirrored = found.flip(-1)
    for _ in range(2):
        rows, columns = data.draw(interval(whole.shape[1])), data.draw(interval(whole.shape[2]))
        window = (slice(None), rows, columns)
        assert torch.equal(found[window], whole[window])
        assert torch.equal(mirrored[window], whole.flip(-1)[window])
    assert torch.equal(mirrored.flip(-1)[:, :, :], whole)
    if compression != "jpeg" and layout.orientation == 1:
        expected = np.asarray(image.convert("RGB")) if not mode.startswith("I") else None
        assert expected is None or np.array_equal(whole.permute(1, 2, 0).numpy(), expected)


def test_sixteen_bits_of_colour(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (40, 48, 3), dtype=np.uint16)
    for order in (b"II", b"MM"):
        stored = values.astype("<u2" if order == b"II" else ">u2")
        tiles = [stored[y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16, 32)]
        coding = {258: [16] * 3, 259: [1], 262: [2], 277: [3]}
        parts = [tile.tobytes() for tile in tiles]
        path = tmp_path / "a.tif"
        write_parts(path, (32, 48), Layout(chunk=(16, 16)), parts, coding, order)
        found = open_image(path, RULES)
        assert isinstance(found, TiffImage)
        assert torch.equal(found[:, 5:30, 7:40], read_image(path)[:, 5:30, 7:40])


@pytest.mark.parametrize("grey_bits", [None, 10, 16])
def test_grey_bits_are_those_of_the_whole_image(tmp_path: Path, grey_bits: int | None) -> None:
    """The brightest pixel is in another tile, and brighter ones beyond the edge of the image."""
    dark = np.full((40, 40), 700, np.uint16)
    dark[39, 39] = 4000
    path = write_image(tmp_path / "a.tif", Image.fromarray(dark), Layout(chunk=(32, 32)))
    rules = PixelRules(in_regions=True, grey_bits=grey_bits)
    found = open_image(path, rules)
    assert torch.equal(found[:, :8, :8], read_image(path, rules)[:, :8, :8])
    assert found[:, :1, :1][0, 0, 0] == 700 >> {None: 4, 10: 2, 16: 8}[grey_bits]


def test_only_the_chunks_of_a_region_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_image(tmp_path / "a.tif", picture("RGB"), Layout(chunk=(16, 16)), "tiff_lzw")
    found = open_image(path, RULES)
    decoded: list[tuple[int, int]] = []
    original = regions._Chunks.decoded

    def noting(self: regions._Chunks, row: int, column: int) -> Image.Image:
        decoded.append((row, column))
        return original(self, row, column)

    monkeypatch.setattr(regions._Chunks, "decoded", noting)
    found[:, 20:30, 20:40]
    assert decoded == [(1, 1), (1, 2)]
    found[:, 20:40, 36:40]
    assert decoded[2:] == [(2, 2)], "the tiles of the last region are kept"
    found[:, 20:30, 20:24]
    assert decoded[3:] == [(1, 1)], "and no others"


@pytest.mark.parametrize(
    ("mode", "layout", "compression", "why"),
    [
        ("RGB", Layout(chunk=(16, 90), tiled=False, orientation=6), "tiff_lzw", "EXIF turns"),
        ("YCbCr", Layout(chunk=(16, 16)), "tiff_lzw", "YCbCr"),
    ],
)
def test_what_is_decoded_as_a_whole_is_said(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    mode: str,
    layout: Layout,
    compression: str,
    why: str,
) -> None:
    caplog.set_level(logging.INFO)
    path = write_image(tmp_path / "a.tif", picture(mode), layout, compression)
    found = open_image(path, RULES)
    assert isinstance(found, Tensor)
    assert torch.equal(found, read_image(path))
    (line,) = caplog.messages
    assert str(path) in line
    assert why in line


@pytest.mark.parametrize("error", [KeyError(256), TypeError("'<' of str"), ValueError("no tag")])
def test_tags_that_make_no_sense_are_said(
    error: Exception,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    path = write_image(tmp_path / "a.tif", picture("RGB"), Layout(chunk=(16, 16)))
    monkeypatch.setattr(regions, "_chunks", Mock(side_effect=error))
    assert torch.equal(open_image(path, RULES)[:, :, :], read_image(path))
    (line,) = caplog.messages
    assert f"{path} is decoded as a whole" in line
    assert repr(error) in line


def test_other_files_are_decoded_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("RGB").save(tmp_path / "a.png")
    assert isinstance(open_image(tmp_path / "a.png", RULES), Tensor)
    path = write_image(tmp_path / "a.tif", picture("RGB"), Layout(chunk=(16, 16)))
    assert isinstance(open_image(path, PixelRules()), Tensor)
    monkeypatch.setattr(regions, "LARGE", SIZE[0] * SIZE[1])
    assert isinstance(open_image(path, RULES), Tensor)
    with pytest.raises(ImageError, match=r"no\.tif does not exist"):
        open_image(tmp_path / "no.tif", RULES)


@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate", "tiff_lzw"])
def test_a_damaged_tile_is_named(tmp_path: Path, compression: str | None) -> None:
    path = write_image(tmp_path / "a.tif", picture("RGB"), Layout(chunk=(32, 32)), compression)
    found = open_image(path, RULES)
    good = found[:, :10, :10]
    content = bytearray(path.read_bytes())
    if compression is None:
        del content[16 + 3 * 32 * 32 * 8 :]  # the last tile is missing
    else:
        with Image.open(path) as file:
            start = file.tag_v2[324][4]
        content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"cannot decode image .*a\.tif \(.+\): replace the file"):
        found[:, :, :]
    assert torch.equal(found[:, :10, :10], good)
    path.unlink()
    with pytest.raises(ImageError, match=r"a\.tif does not exist"):
        found[:, 60:, 60:]


def test_floating_point_has_no_range(tmp_path: Path) -> None:
    layout = Layout(chunk=(16, 90), tiled=False)
    path = write_image(tmp_path / "a.tif", picture("L").convert("F"), layout)
    with pytest.raises(ImageError, match="floating-point"):
        open_image(path, RULES)[:, :4, :4]


def test_the_limit_is_one_of_regions(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.tif", picture("RGB"), Layout(chunk=(16, 16)))
    rules = PixelRules(in_regions=True, max_megapixels=64 * 64 / 1e6)
    found = open_image(path, rules)
    assert found[:, 10:50, 10:60].shape == (3, 40, 50)
    with pytest.raises(ImageError, match=r"has 90x70 pixels in .*max_megapixels=1"):
        found[:, :, :]
    with pytest.raises(ImageError, match="has 90x70 pixels"):
        read_image(path, rules)


@pytest.mark.parametrize(
    ("layout", "window"),
    [
        (Layout(chunk=(64, 16)), (slice(0, 1), slice(None))),  # tall tiles, side by side
        (Layout(chunk=(16, 96)), (slice(None), slice(0, 1))),  # wide ones, above each other
        (Layout(chunk=(16, 90), tiled=False), (slice(None), slice(0, 1))),
    ],
)
def test_the_limit_counts_what_a_region_touches(
    tmp_path: Path, layout: Layout, window: tuple[slice, slice]
) -> None:
    """Else a file of some kilobytes, whose tiles are all as tall as it is, takes gigabytes."""
    path = write_image(tmp_path / "a.tif", picture("RGB"), layout)
    rules = PixelRules(in_regions=True, max_megapixels=5e-3)
    found = open_image(path, rules)
    assert found[:, :2, :2].shape == (3, 2, 2)
    expected = r"pixels in the tiles or strips of a region, which is more than 0\.005 million"
    with pytest.raises(ImageError, match=expected):
        found[:, *window]


@pytest.mark.parametrize(
    ("tag", "value"), [((322, 323), -16), ((325,), -1)], ids=["sides", "lengths"]
)
def test_negative_numbers_are_refused(tmp_path: Path, tag: tuple[int, ...], value: int) -> None:
    """Of sides the product would be positive, and no tile would seem to be needed."""
    layout = Layout(chunk=(16, 16))
    path = write_image(tmp_path / "a.tif", picture("RGB", (16, 16)), layout, "tiff_lzw")
    content = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<L", content, 4)
    (entries,) = struct.unpack_from("<H", content, directory)
    for at in range(directory + 2, directory + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", content, at)[0] in tag:
            struct.pack_into("<HLl", content, at + 2, 9, 1, value)  # 9: signed
    path.write_bytes(content)
    with pytest.raises(ImageError, match="cannot decode"):
        open_image(path, RULES)


def large(path: Path, side: int, chunk: tuple[int, int], count: int) -> Path:
    """``count`` times the same black tile, for ``side`` x ``side`` pixels."""
    part, coding, _ = encoded(Image.new("L", chunk[::-1]), "tiff_adobe_deflate")
    return write_parts(path, (side, side), Layout(chunk=chunk), [part] * count, coding)


@pytest.mark.parametrize(
    ("side", "chunk", "count"),
    [
        (2**16, (64, 64), 1),  # not enough tiles
        (2**10, (64, 64), 257),  # too many
        (2**10, (64, 64), 0),
        (2**15, (2**13, 2**13), 16),  # of 64 million pixels each
    ],
)
def test_small_files_of_many_pixels_are_limited(
    tmp_path: Path, side: int, chunk: tuple[int, int], count: int
) -> None:
    path = large(tmp_path / "a.tif", side, chunk, count)
    assert path.stat().st_size < 2**17
    with pytest.raises(ImageError):
        open_image(path, PixelRules(in_regions=True, max_megapixels=1))


def test_there_is_a_largest_image_and_a_most_of_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large(tmp_path / "a.tif", 2**10, (64, 64), 256)
    rules = PixelRules(in_regions=True, max_megapixels=1)
    assert open_image(path, rules)[:, 1000:, 1000:].shape == (3, 24, 24)
    for name, most in (("MOST_PIXELS", 2**20 - 1), ("MOST_CHUNKS", 255)):
        with monkeypatch.context() as patched:
            patched.setattr(regions, name, most)
            with pytest.raises(ImageError, match="has 1024x1024 pixels"):
                open_image(path, rules)


def test_few_bytes_of_a_region_are_in_memory(tmp_path: Path) -> None:
    """185 million pixels, above the limit of a whole image."""
    path = large(tmp_path / "a.tif", 13_600, (512, 512), 27 * 27)
    found = open_image(path, PixelRules(in_regions=True))
    assert found.shape == (3, 13_600, 13_600)
    assert found[:, 13_000:, 13_000:].shape == (3, 600, 600)
    with pytest.raises(ImageError, match="has 13600x13600 pixels"):
        read_image(path)


PREPROCESSING: dict[str, Augmentation] = {
    "opencv": EvalResize(20, 33),
    "pillow": EvalResize(20, 33, antialias=True),
    "enlarged": EvalResize(100, 150, antialias=True),
    "canvas": LsjEval(32),
    "nothing": Chain(),
    "something else first": Chain((Apply(v2.RandomHorizontalFlip(1.0)), EvalResize(20, 33))),
    "no resize": PadToCanvas(128),
}


@pytest.mark.parametrize("name", PREPROCESSING)
@pytest.mark.parametrize("orientation", [1, 6])
def test_preprocessing_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, orientation: int
) -> None:
    monkeypatch.setattr("codetr.data.resize._BAND_PIXELS", 700)
    layout = Layout(chunk=(16, 32), orientation=orientation)
    path = write_image(tmp_path / "a.tif", picture("RGB"), layout)
    preprocess = PREPROCESSING[name]
    found = open_image(path, RULES)
    assert isinstance(found, TiffImage)
    made, expected = prepared(found, preprocess), preprocess(as_sample(read_image(path)))
    assert torch.equal(made.image, expected.image)
    assert (made.original_size, made.scale) == (expected.original_size, expected.scale)
