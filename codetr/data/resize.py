"""Target sizes, bilinear resizing of uint8 images as in OpenCV or Pillow, and nearest-neighbour
resizing.

OpenCV interpolates the four nearest pixels even when it shrinks, and its fixed-point rounding
differs from other libraries' by up to one grey level in about one of five values. Pillow averages
over all pixels that fall into a new one (antialiasing). When enlarging, they differ in rounding
only.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from codetr.data.regions import Regions

Window = tuple[int, int, int, int]
"""Top, left, height and width of a part of an image, pixels."""

_BAND_PIXELS = 2**20
"""Pixels that ``resize_regions`` reads at a time."""
_WEIGHT_ONE = 2048  # OpenCV's 11-bit interpolation weights


def fitted_size(size: tuple[int, int], short: float, long: float) -> tuple[int, int]:
    """The largest (height, width) with the same aspect ratio within ``short`` and ``long`` sides.

    Rounds half up, as the official code does (mmcv ``imrescale``); may enlarge; at least 1.
    """
    scale = min(long / max(size), short / min(size))
    height, width = (max(int(side * scale + 0.5), 1) for side in size)
    return height, width


def detr_size(size: tuple[int, int], short: float, long: float) -> tuple[int, int]:
    """The (height, width) with the same aspect ratio whose short side is ``short``, or is rounded
    from the largest value that keeps the long side within ``long``. The long side is truncated to
    whole pixels. At least 1.

    As in DETR's code and its descendants: 640 x 480 to a short side of 800 gives 1066 x 800, where
    mmcv gives 1067 x 800.
    """
    least, most = min(size), max(size)
    side = max(int(short if most / least * short <= long else round(long * least / most)), 1)
    other = max(int(side * most / least), 1)
    return (side, other) if size[0] <= size[1] else (other, side)


def resize_bilinear(
    image: Tensor, size: tuple[int, int], antialias: bool, window: Window | None = None
) -> Tensor:
    """Resize uint8 (C, H, W) to ``size`` (height, width) and, if given, crop to ``window``.

    With ``antialias`` as Pillow, up to one grey level (two for about one in ten million values of
    noise). Else as OpenCV's INTER_LINEAR, bit-exact with opencv 4.11.0 and 5.0.0; only ``window``
    is computed, and the result is channels-last in memory, which is also the fastest layout for the
    input. Raises TypeError for other dtypes.
    """
    if not antialias:
        if image.dtype != torch.uint8:
            raise TypeError(f"resize_bilinear takes uint8 images, not {image.dtype}")
        return _opencv(image, size, window or (0, 0, *size), step=size[0])
    # channels-last, the layout of decoded images: several times faster, and with the other layout
    # torch fails for targets of a single pixel
    image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    resized = F.resize(image, list(size), antialias=True)
    return resized if window is None else F.crop(resized, *window)


def _opencv(image: Regions, size: tuple[int, int], window: Window, step: int) -> Tensor:
    """``window`` of the image resized as OpenCV does, computing ``step`` rows at a time."""
    from codetr.data.resize_loops import interpolate  # numba takes half a second to import

    channels, height, width = image.shape
    top, left, shown_height, shown_width = window
    rows = _neighbours(height, size[0], clamp_position=False)[:, top : top + shown_height]
    columns = _neighbours(width, size[1], clamp_position=True)[:, left : left + shown_width]
    out = np.empty((shown_height, shown_width * channels), np.uint8)
    for start in range(0, shown_height, step):
        part = rows[:, start : start + step].copy()
        first, last = int(part[0, 0]), int(part[1, -1])
        part[:2] -= first
        pixels = image[:, first : last + 1, :].permute(1, 2, 0).numpy()
        flat = np.ascontiguousarray(pixels).reshape(last + 1 - first, width * channels)
        interpolate(flat, channels, part, columns, out[start : start + step])
    return torch.from_numpy(out).view(shown_height, shown_width, channels).permute(2, 0, 1)


def resize_regions(image: Regions, size: tuple[int, int], antialias: bool) -> Tensor:
    """``resize_bilinear`` of an image that is read in bands. Bit-exact or, if torch does not
    compute in uint8 (Intel processors without AVX2), up to one grey level.
    """
    channels, height, width = image.shape
    step = max(1, _BAND_PIXELS // width)
    if not antialias:
        return _opencv(image, size, (0, 0, *size), max(1, step * size[0] // height))
    # torch resizes the width first, and rounds before it resizes the height
    narrow = torch.empty(height, size[1], channels, dtype=torch.uint8)
    for top in range(0, height, step):
        band = image[:, top : top + step, :]
        across = resize_bilinear(band, (band.shape[1], size[1]), antialias)
        narrow[top : top + step] = across.permute(1, 2, 0)
    return resize_bilinear(narrow.permute(2, 0, 1), size, antialias)


def _neighbours(source: int, target: int, clamp_position: bool) -> NDArray[np.int32]:
    """(4, target) for every new pixel: the indices of the low and the high neighbour and the
    integer weights of both, rounded half to even, with aligned pixel centres.

    Beyond the outermost centres OpenCV clamps the sample position for columns, but for rows only
    the indices, not the weights.
    """
    step = 1.0 / (target / source)
    position = ((np.arange(target) + 0.5) * step - 0.5).astype(np.float32)
    floor = np.floor(position)
    low, fraction = floor.astype(np.int32), position - floor
    if clamp_position:
        fraction[(low < 0) | (low >= source - 1)] = 0
        low = low.clip(0, source - 1)
    weights = np.rint(np.stack([1 - fraction, fraction]) * np.float32(_WEIGHT_ONE))
    both = np.stack([low, low + 1]).clip(0, source - 1)
    return np.concatenate([both, weights]).astype(np.int32)


def resize_nearest(masks: Tensor, size: tuple[int, int], window: Window | None = None) -> Tensor:
    """Resize (N, H, W) to ``size`` (height, width) by nearest neighbour; if given, only the part in
    ``window`` (top, left, height, width) is computed.

    As OpenCV's INTER_NEAREST and torch's ``nearest``, but several times faster on many masks, since
    numpy gathers bytes faster than torch.
    """
    (height, width), (new_height, new_width) = masks.shape[-2:], size
    top, left, shown_height, shown_width = window or (0, 0, *size)
    rows = np.arange(top, top + shown_height) * height // new_height
    columns = np.arange(left, left + shown_width) * width // new_width
    first = rows[0]  # columns are gathered first, for the rows of the window only
    seen = masks.numpy()[:, first : rows[-1] + 1]
    return torch.from_numpy(seen.take(columns, axis=2).take(rows - first, axis=1))
