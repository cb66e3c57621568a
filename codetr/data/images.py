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
"""EXIF orientations that exchange width and height."""

_PEAK_BYTES = 7
"""Of memory for a pixel while it is decoded: Pillow's own 4, and 3 of what is made of it."""
_BAND_PIXELS = 2**18
"""How much of an image is copied at a time: little enough for memory that is used again."""


class Geometry(NamedTuple):
    """The (height, width) of an upright image, and the EXIF orientation that turns it so."""

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
    """How files become pixels of 8 bits: images of more than ``max_megapixels`` are refused;
    ``grey_bits`` is how many bits grey values of deeper files have, such as 12 of a microscope's
    (None: as few of 8, 10, 12, 14 and 16 as the brightest pixel of the image needs). The upper 8
    are kept. ``in_regions``: large files may be left undecoded until parts of them are looked at,
    and the limit is one of parts; see ``codetr.data.regions``. ``remedy`` is how messages call the
    setting of the limit, up to its value.

    Raises UserError where a number is out of range.
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
    """As ``read_image``. Raises ImageError also where the (height, width) is not as annotated."""

    def accept(size: tuple[int, int]) -> None:
        if size != annotated:
            raise ImageError(
                f"image {path} has {size[1]}x{size[0]} pixels, the annotations say "
                f"{annotated[1]}x{annotated[0]}"
            )

    return read_scaled(path, None, rules, accept)[0]


def read_image(path: Path, rules: PixelRules = DEFAULT_RULES) -> Tensor:
    """The file as RGB, (3, H, W) uint8, turned upright by its EXIF orientation.

    Any format that Pillow knows; grey, palette and CMYK are converted, alpha is dropped. For JPEG
    the bytes are those that OpenCV gives. In memory the three values of a pixel lie side by side
    (channels last), which torchvision resizes several times as fast. Raises ImageError for
    missing, foreign, damaged and too large files.
    """
    return read_scaled(path, None, rules)[0]


def read_scaled(
    path: Path,
    least: tuple[int, int] | None,
    rules: PixelRules = DEFAULT_RULES,
    accept: Callable[[tuple[int, int]], object] = lambda size: None,
) -> tuple[Tensor, tuple[int, int]]:
    """What ``read_image`` gives, perhaps smaller, and the (height, width) of all of it.

    With ``least``, (height, width), a JPEG file of at least twice that size is decoded at 1/2, 1/4
    or 1/8 of it (libjpeg's scaled DCT), never smaller than ``least``: quicker, but other pixels
    than decoding all of it and shrinking that. ``accept`` is called with the (height, width) of
    the header and may raise ImageError, before anything is decoded: a small file can hold millions
    of pixels.
    """
    register_plugins()  # in every worker
    with naming(path), unlimited(), Image.open(path) as file:
        size, orientation = geometry(file)
        require_smaller(path, size, rules)
        accept(size)
        turned = orientation in ON_THEIR_SIDE
        if turned and isinstance(file, TiffImageFile):
            file.filename = ""  # else Pillow may map it into memory as if it were upright already
        if least:
            file.draft(None, least if turned else least[::-1])  # heeded by JPEG alone
        # Pillow would copy an image that is upright already.
        upright = file if orientation == 1 else ImageOps.exif_transpose(file)
        pixels = as_array(as_rgb(upright, rules.grey_bits))
    return torch.from_numpy(pixels).permute(2, 0, 1), size


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns what goes wrong with an image file into an ImageError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise ImageError(f"image {path} does not exist: restore the file or name another") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
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
    """Without Pillow's own limit of sizes: ``PixelRules`` has one that can be set."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_geometry(path: Path) -> Geometry:
    """Of the image that ``read_image`` gives, from the file's header alone.

    Raises ImageError for missing and foreign files.
    """
    register_plugins()
    try:
        with unlimited(), Image.open(path) as file:
            return geometry(file)
    except Exception as error:  # Pillow's readers of headers raise many kinds, too
        raise ImageError(
            f"cannot read image {path} ({_reason(error)}): "
            f"{missing_plugin(path.name) or 'replace the file'}"
        ) from None


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of ``read_geometry``."""
    return read_geometry(path).size


def geometry(file: Image.Image) -> Geometry:
    """As ``read_geometry``, of a file that is only opened."""
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
    """8-bit RGB; of deeper grey values the upper 8 of ``grey_bits``, see ``PixelRules``."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        bits = grey_bits or depth(int(values.max(initial=0)))
        image = Image.fromarray((values >> (bits - 8)).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def as_array(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) of an RGB image. Pillow gives the bytes as a copy, so that large images are taken
    in bands: a third less memory, and several times as fast.
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
    """The fewest bits of the usual depths that hold a value."""
    return next((bits for bits in (8, 10, 12, 14, 16) if brightest < 2**bits), 32)
