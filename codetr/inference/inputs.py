"""Conversion of images given as files, URLs, Pillow images, arrays or tensors."""

from __future__ import annotations

import tempfile
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codetr.data.images import DEFAULT_RULES, PixelRules, as_array, as_rgb, read_image
from codetr.data.regions import Regions, TiffImage, open_image
from codetr.errors import UserError

ImageLike = str | Path | Image.Image | np.ndarray | Regions
"""A file; an http(s) URL; a Pillow image; a uint8 array (H, W, 3) or tensor (3, H, W), RGB; the
result of ``open_image``.
"""

MAX_BYTES = 256 * 2**20
"""Maximum size of a downloaded image."""
TIMEOUT_S = 30.0
"""Timeout of downloads in seconds."""


def as_image(value: ImageLike, rules: PixelRules = DEFAULT_RULES) -> Regions:
    """The image as a uint8 RGB tensor (3, H, W) on the CPU or, if ``rules`` allow it, as a large
    file that is read in regions.

    Files are turned upright by their EXIF orientation; Pillow images, arrays and tensors are not.
    ``rules``: see ``open_image``. Raises UserError for other values, and for files that cannot be
    read.
    """
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        return _fetch(value, rules)
    if isinstance(value, str | Path):
        return open_image(Path(value), rules)
    if isinstance(value, Image.Image):
        try:
            return torch.from_numpy(as_array(as_rgb(value, rules.grey_bits))).permute(2, 0, 1)
        except ValueError as error:
            raise UserError(
                f"a Pillow image of mode {value.mode} ({error}): give one of 8 bits, mode RGB or L"
            ) from None
    if isinstance(value, TiffImage):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3 and value.size:
            return torch.from_numpy(value.transpose(2, 0, 1).copy())
        raise _wrong_shape("array", value, "uint8 of shape (height, width, 3), RGB")
    if isinstance(value, Tensor):
        if value.dtype == torch.uint8 and value.ndim == 3 and len(value) == 3 and value.numel():
            return value.cpu()
        raise _wrong_shape("tensor", value, "uint8 of shape (3, height, width), RGB")
    raise UserError(
        f"an image of type {type(value).__name__}: give a file name, a Pillow image, a uint8 array "
        "(height, width, 3) or a uint8 tensor (3, height, width)"
    )


def _fetch(address: str, rules: PixelRules) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image")
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
                size = path.write_bytes(answer.read(MAX_BYTES + 1))
        except (OSError, ValueError, HTTPException) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{address}: cannot be fetched ({reason}): check the address and the network, or "
                "give a file"
            ) from None
        if size > MAX_BYTES:
            raise UserError(
                f"{address}: more than {MAX_BYTES >> 20} MiB: download it, and give the file"
            )
        try:
            return read_image(path, rules)
        except UserError as error:
            raise UserError(str(error).replace(str(path), address)) from None


def is_one_image(value: ImageLike | Sequence[ImageLike]) -> bool:
    """Whether it is a single image rather than several; invalid values count as a single one."""
    several = isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | Mapping)
    return isinstance(value, ImageLike) or not several


def _wrong_shape(kind: str, value: Any, expected: str) -> UserError:
    return UserError(
        f"an image {kind} of {value.dtype} and shape {tuple(value.shape)}: give {expected}"
    )
