"""Reading image files into RGB tensors with the right pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from torch import Tensor

from codetr.errors import UserError

_ON_THEIR_SIDE = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


class ImageError(UserError):
    """An image file that cannot be used. The message is one line, also out of a data worker.

    A DataLoader rebuilds a worker's exception from the text of its traceback, whose last line is
    the message: everything before it is cut off here.
    """

    def __init__(self, message: str) -> None:
        last_line = message.strip().rsplit("\n", 1)[-1]
        super().__init__(last_line.removeprefix(f"{__name__}.ImageError: "))


def read_image(path: Path) -> Tensor:
    """The file as RGB, (3, H, W) uint8, turned upright by its EXIF orientation.

    Any format that Pillow knows; grey, palette and CMYK are converted, alpha is dropped. For JPEG
    the bytes are those that OpenCV gives. In memory the three values of a pixel lie side by side
    (channels last), which torchvision resizes several times as fast. Raises ImageError for
    missing, foreign and damaged files.
    """
    return read_scaled(path, None)[0]


def read_scaled(path: Path, least: tuple[int, int] | None) -> tuple[Tensor, tuple[int, int]]:
    """What ``read_image`` gives, perhaps smaller, and the (height, width) of all of it.

    With ``least``, (height, width), a JPEG file of at least twice that size is decoded at 1/2, 1/4
    or 1/8 of it (libjpeg's scaled DCT), never smaller than ``least``: quicker, but other pixels
    than decoding all of it and shrinking that.
    """
    try:
        with Image.open(path) as file:
            orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
            size = _upright_size(file)
            if least:
                turned = orientation in _ON_THEIR_SIDE
                file.draft(None, least if turned else least[::-1])  # heeded by JPEG alone
            # Pillow would copy an image that is upright already.
            upright = file if orientation == 1 else ImageOps.exif_transpose(file)
            pixels = np.array(as_rgb(upright))
    except FileNotFoundError:
        raise ImageError(
            f"image {path} does not exist: restore the file or remove it from the annotation file"
        ) from None
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise ImageError(
            f"cannot decode image {path} ({reason}): replace the file or remove it from the "
            "annotation file"
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1), size


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of the image that ``read_image`` gives, from the file's header alone.

    Raises ImageError for missing and foreign files.
    """
    try:
        with Image.open(path) as file:
            return _upright_size(file)
    except Exception as error:  # Pillow's readers of headers raise many kinds, too
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise ImageError(f"cannot read image {path} ({reason}): replace the file") from None


def _upright_size(file: Image.Image) -> tuple[int, int]:
    """(height, width) once turned by the EXIF orientation, of a file that is only opened."""
    width, height = file.size
    if isinstance(file, TiffImageFile):  # Pillow may have exchanged its sides already
        width, height = (file.tag_v2[key] for key in (IMAGEWIDTH, IMAGELENGTH))
    turned = file.getexif().get(ExifTags.Base.Orientation) in _ON_THEIR_SIDE
    return (width, height) if turned else (height, width)


def as_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; of 16-bit grey values the high byte, where Pillow alone would cut them at 255."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
