"""What may be given as an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codetr.data.images import as_rgb, read_image
from codetr.errors import UserError

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
"""A file; a Pillow image; a uint8 array (H, W, 3); a uint8 tensor (3, H, W). RGB."""


def as_image(value: ImageLike) -> Tensor:
    """Any of them as a uint8 RGB tensor (3, H, W) on the CPU.

    Files are turned upright by their EXIF orientation; Pillow images, arrays and tensors are taken
    as they are. Raises UserError for anything else, and for a file that cannot be read.
    """
    if isinstance(value, str | Path):
        return read_image(Path(value))
    if isinstance(value, Image.Image):
        try:
            return _channels_first(np.array(as_rgb(value)))
        except ValueError as error:
            raise UserError(
                f"a Pillow image of mode {value.mode} ({error}): give one of 8 bits, mode RGB or L"
            ) from None
    if isinstance(value, np.ndarray):
        if value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3 and value.size:
            return _channels_first(value)
        raise _unfit("array", value, "uint8 of shape (height, width, 3), RGB")
    if isinstance(value, Tensor):
        if value.dtype == torch.uint8 and value.ndim == 3 and len(value) == 3 and value.numel():
            return value.cpu()
        raise _unfit("tensor", value, "uint8 of shape (3, height, width), RGB")
    raise UserError(
        f"an image of type {type(value).__name__}: give a file name, a Pillow image, a uint8 array "
        "(height, width, 3) or a uint8 tensor (3, height, width)"
    )


def is_one_image(value: ImageLike | Sequence[ImageLike]) -> bool:
    """Whether it is a single image rather than several."""
    return isinstance(value, str | Path | Image.Image | np.ndarray | Tensor)


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _unfit(kind: str, value: Any, wanted: str) -> UserError:
    return UserError(
        f"an image {kind} of {value.dtype} and shape {tuple(value.shape)}: give {wanted}"
    )
