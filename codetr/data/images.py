"""Reading image files into RGB tensors with the right pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from torch import Tensor

from codetr.data.files import missing_plugin, register_plugins
from codetr.errors import UserError

ON_THEIR_SIDE = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""

_PEAK_BYTES = 7
"""Peak memory per pixel during decoding: 4 in Pillow, and 3 of the result."""
_BAND_PIXELS = 2**18
"""Pixels of an image that are copied at a time, few enough for the allocator to reuse memory."""


class Geometry(NamedTuple):
    """The (height, width) of the upright image, and the EXIF orientation of the file."""

    size: tuple[int, int]
    orientation: int


class ImageError(UserError):
    """An image file that cannot be used. The message is one line, also out of a data worker.

    A DataLoader rebuilds a worker's exception from the text of its traceback, whose last line is
    the message: everything before it is cut off here.
    """

    def __init__(self, message: str) -> None:
        last_line = message.strip().rsplit("\n", 1)[-1]
        super().__init__(last_line.removeprefix(f"{__name__}.ImageError: "))


@dataclass(frozen=True, kw_only=True)
class PixelRules:
    """How files are decoded to 8 bits. Images of more than ``max_megapixels`` are refused.
    ``grey_bits``: number of bits of grey values in files with more than 8, such as 12 from a
    microscope, of which the upper 8 are kept (None: the fewest of 8, 10, 12, 14 and 16 that hold
    the brightest pixel of the image). ``in_regions``: large files may be decoded in regions, on
    demand, and the limit applies to regions; see ``codetr.data.regions``. ``remedy``: the setting
    of the limit in messages, up to its value.

    Raises UserError if a number is out of range.
    """

    max_megapixels: float = 180.0
    grey_bits: int | None = None
    in_regions: bool = False
    remedy: str = "set data.max_megapixels="

    def __post_init__(self) -> None:
        if not self.max_megapixels > 0:
            raise UserError(f"data.max_megapixels={self.max_megapixels}: give more than 0")
        if self.grey_bits is not None and not 8 <= self.grey_bits <= 32:
            raise UserError(f"data.grey_bits={self.grey_bits}: give 8 to 32, or null for auto")


DEFAULT_RULES = PixelRules()


def read_annotated(
    path: Path, annotated: tuple[int, int], rules: PixelRules = DEFAULT_RULES
) -> Tensor:
    """``read_image``, which also raises ImageError if the (height, width) is not as annotated."""

    def accept(size: tuple[int, int]) -> None:
        if size != annotated:
            raise ImageError(
                f"image {path} has {size[1]}x{size[0]} pixels, the annotations say "
                f"{annotated[1]}x{annotated[0]}"
            )

    return read_scaled(path, None, rules, accept)[0]


def read_image(path: Path, rules: PixelRules = DEFAULT_RULES) -> Tensor:
    """The file as RGB, (3, H, W) uint8, turned upright by its EXIF orientation.

    Supports all formats of Pillow; grey, palette and CMYK are converted, alpha is dropped. JPEG
    gives the same bytes as OpenCV. The memory format is channels-last, which torchvision resizes
    several times faster. Raises ImageError for missing, foreign, damaged and too large files.
    """
    return read_scaled(path, None, rules)[0]


def read_scaled(
    path: Path,
    least: tuple[int, int] | None,
    rules: PixelRules = DEFAULT_RULES,
    accept: Callable[[tuple[int, int]], object] = lambda size: None,
) -> tuple[Tensor, tuple[int, int]]:
    """``read_image``, possibly at a reduced size, and the full (height, width).

    With ``least``, (height, width), a JPEG file of at least twice that size is decoded at 1/2, 1/4
    or 1/8 (libjpeg's scaled DCT), never smaller than ``least``: faster, but with other pixels than
    by resizing the full image. ``accept`` is called with the (height, width) in the header before
    anything is decoded, and may raise ImageError: a small file can contain millions of pixels.
    """
    register_plugins()  # in every worker
    with naming(path), unlimited(), Image.open(path) as file:
        size, orientation = geometry(file)
        require_smaller(path, size, rules)
        accept(size)
        turned = orientation in ON_THEIR_SIDE
        if turned and isinstance(file, TiffImageFile):
            file.filename = ""  # else Pillow may map the file into memory as if it were upright
        if least:
            file.draft(None, least if turned else least[::-1])  # has an effect on JPEG only
        # ``exif_transpose`` copies images that are already upright.
        upright = file if orientation == 1 else ImageOps.exif_transpose(file)
        pixels = as_array(as_rgb(upright, rules.grey_bits))
    return torch.from_numpy(pixels).permute(2, 0, 1), size


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise ImageError with the name of the image file in place of any exception in the block."""
    try:
        yield
    except FileNotFoundError:
        raise ImageError(f"image {path} does not exist: restore the file or name another") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise ImageError(
            f"cannot decode image {path} ({_reason(error)}): "
            f"{missing_plugin(path.name) or 'replace the file or leave it out'}"
        ) from None


def require_smaller(path: Path, size: tuple[int, int], rules: PixelRules, where: str = "") -> None:
    """Raise ImageError if a (height, width), described by ``where`` unless it is that of the whole
    image, has more pixels than ``rules`` allow.
    """
    megapixels = size[0] * size[1] / 1e6
    if megapixels > rules.max_megapixels:
        raise ImageError(
            f"image {path} has {size[1]}x{size[0]} pixels{where}, which is more than "
            f"{rules.max_megapixels:g} million and takes {_PEAK_BYTES * megapixels:.0f} MB to "
            f"read: {rules.remedy}{megapixels + 1:.0f}, or cut the image into smaller files"
        )


@contextmanager
def unlimited() -> Iterator[None]:
    """Disable Pillow's own limit of sizes within the block, in favour of that of ``PixelRules``."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_geometry(path: Path) -> Geometry:
    """The geometry of the image that ``read_image`` returns, from the file's header only.

    Raises ImageError for missing and foreign files.
    """
    register_plugins()
    try:
        with unlimited(), Image.open(path) as file:
            return geometry(file)
    except Exception as error:  # reading a header may also raise many types
        raise ImageError(
            f"cannot read image {path} ({_reason(error)}): "
            f"{missing_plugin(path.name) or 'replace the file'}"
        ) from None


def geometry(file: Image.Image) -> Geometry:
    """``read_geometry`` for an open file."""
    width, height = file.size
    if isinstance(file, TiffImageFile):  # Pillow may have exchanged its sides already
        width, height = (file.tag_v2[key] for key in (IMAGEWIDTH, IMAGELENGTH))
    orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation not in range(1, 9):
        orientation = 1
    turned = orientation in ON_THEIR_SIDE
    return Geometry((width, height) if turned else (height, width), orientation)


def _reason(error: Exception) -> str:
    return str(error).replace("\n", " ") or type(error).__name__


def as_rgb(image: Image.Image, grey_bits: int | None = None) -> Image.Image:
    """The image as 8-bit RGB; for deeper grey values see ``grey_bits`` of ``PixelRules``."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        bits = grey_bits or depth(int(values.max(initial=0)))
        image = Image.fromarray((values >> (bits - 8)).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def as_array(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of an RGB image. Large images are converted in bands, since Pillow
    returns a copy of all bytes: this takes a third less memory and is several times faster.
    """
    width, height = image.size
    if width * height <= 2 * _BAND_PIXELS:
        return np.array(image)
    pixels = np.empty((height, width, 3), np.uint8)
    step = max(1, _BAND_PIXELS // width)
    for top in range(0, height, step):
        band = image.crop((0, top, width, min(top + step, height)))
        pixels[top : top + step] = np.asarray(band)
    return pixels


def depth(brightest: int) -> int:
    """The smallest usual bit depth that can represent a value."""
    return next((bits for bits in (8, 10, 12, 14, 16) if brightest < 2**bits), 32)
