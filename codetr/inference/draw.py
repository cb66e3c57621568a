"""Drawing boxes with readable labels on images, and panels of images.

An image here is a uint8 tensor (3, H, W), RGB; boxes are xyxy in its pixels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

Colour = tuple[int, int, int]

BACKGROUND = 32
"""Grey level between the images of a panel."""

TINT = 0.45
"""Opacity of the class colour inside a mask."""

HUE_STEP = (5**0.5 - 1) / 2
"""The golden ratio: its multiples modulo 1 are spread evenly for any number of classes."""

TALL = "Ap"
"""A text of maximum ascent and descent, so that all labels have the same height."""


def class_colour(label: int) -> Colour:
    """A bright colour that depends on the class index only."""
    hue, saturation = label * HUE_STEP % 1, (0.9, 0.6)[label % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def denormalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The uint8 image (3, H, W) before normalisation.

    ``mean`` and ``std`` per channel (RGB) in grey levels, 0 to 255, as in the data module.
    """
    scale, shift = pixels.new_tensor(std), pixels.new_tensor(mean)
    restored = pixels * scale[:, None, None] + shift[:, None, None]
    return restored.round().clamp(0, 255).to(torch.uint8)


def draw_boxes(
    image: Tensor,
    boxes_xyxy_px: Tensor,
    labels: Tensor,
    names: Sequence[str],
    scores: Tensor | None = None,
    *,
    masks: Tensor | None = None,
    min_side: int = 480,
    least_named: float = 0.0,
) -> Tensor:
    """The image with boxes (n, 4), each with its class name and score, the best scores on top.
    Masks (n, H, W) bool are tinted in the colour of their class, with an edge. Boxes whose longer
    side is below ``least_named`` pixels only get a thin outline.

    If the longer side is below ``min_side``, the result is enlarged by the smallest integer factor
    that reaches it, so that labels are readable.
    """
    factor = enlargement(image, min_side)
    order = range(len(labels)) if scores is None else scores.argsort().tolist()
    if masks is not None:
        image = tinted(image.cpu(), masks.cpu(), labels.tolist(), order)
    canvas = to_pil_image(image.cpu().repeat_interleave(factor, 1).repeat_interleave(factor, 2))
    pen = ImageDraw.Draw(canvas)
    font = _font(max(canvas.size))
    width = max(1, round(max(canvas.size) / 320))
    corners = (boxes_xyxy_px.detach().cpu().double() * factor).tolist()
    classes = labels.tolist()
    certainty = [None] * len(classes) if scores is None else scores.tolist()
    named = [max(x1 - x0, y1 - y0) >= least_named * factor for x0, y0, x1, y1 in corners]
    for i in order:
        colour = class_colour(classes[i])
        pen.rectangle(_ordered(corners[i]), outline=colour, width=width if named[i] else 1)
    for i in order:  # after all outlines, so that none crosses a text
        if not named[i]:
            continue
        text = names[classes[i]]
        text = text if certainty[i] is None else f"{text} {certainty[i]:.2f}"
        _label(pen, corners[i], text, class_colour(classes[i]), font, canvas.size)
    return pil_to_tensor(canvas)


def tinted(image: Tensor, masks: Tensor, labels: Sequence[int], order: Iterable[int]) -> Tensor:
    """The image with ``masks`` (n, H, W) bool overlaid one after the other in ``order``,
    semi-transparent in the colour of their class, with an opaque inner edge.
    """
    canvas = image.float()
    for i in order:
        mask, colour = masks[i], torch.tensor(class_colour(labels[i]), dtype=torch.float32)
        around = F.pad(mask[None].float(), (1, 1, 1, 1), mode="replicate")
        inner = F.max_pool2d(-around, 3, stride=1)[0] < -0.5  # all neighbours are in the mask
        share = torch.where(mask & ~inner, 1.0, TINT * mask)
        canvas += share * (colour[:, None, None] - canvas)
    return canvas.round().to(torch.uint8)


def enlargement(image: Tensor, min_side: int) -> int:
    """The smallest integer factor that enlarges the longer side of (3, H, W) to ``min_side``."""
    return max(1, -(-min_side // max(image.shape[-2:])))


def side_by_side(left: Tensor, right: Tensor, captions: tuple[str, str]) -> Tensor:
    """Two images side by side, each below its caption (such as "predicted" and "true")."""
    font = _font(max(*left.shape[-2:], *right.shape[-2:]))
    return grid([_captioned(left, captions[0], font), _captioned(right, captions[1], font)], 2)


def grid(images: Sequence[Tensor], columns: int, *, gap: int = 4) -> Tensor:
    """Images of any sizes in a grid with ``columns``, each at the top left of its cell.

    Raises ValueError for no images.
    """
    if not images:
        raise ValueError("no image for the grid: give one or more")
    height = max(image.shape[-2] for image in images)
    width = max(image.shape[-1] for image in images)
    cells = torch.full((len(images), 3, height, width), BACKGROUND, dtype=torch.uint8)
    for cell, image in zip(cells, images, strict=True):
        cell[:, : image.shape[1], : image.shape[2]] = image
    columns = min(columns, len(cells))
    return make_grid(cells, nrow=columns, padding=gap, pad_value=BACKGROUND)


def save_png(path: str | Path, image: Tensor) -> None:
    """Write a uint8 image, creating its folder if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(image.cpu()).save(path, format="PNG")


def _font(side: int) -> ImageFont.FreeTypeFont:
    """A font whose size is proportional to the longer side of the image in pixels."""
    return _font_of_size(max(12, round(side / 45)))


@cache
def _font_of_size(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which is part of Matplotlib and has Latin, Greek, Cyrillic and other letters,
    unlike Pillow's own font.
    """
    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(path, size)


def _ordered(box: Sequence[float]) -> tuple[float, float, float, float]:
    """Corners with left <= right and top <= bottom, as Pillow requires."""
    x0, y0, x1, y1 = box
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _label(
    pen: ImageDraw.ImageDraw,
    box: Sequence[float],
    text: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont,
    canvas_wh: tuple[int, int],
) -> None:
    """Draw text on a filled background above the box, or inside if there is no room above."""
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox(TALL)
    margin = 2
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x0, y0, _, _ = _ordered(box)
    x = max(0.0, min(x0, canvas_wh[0] - width))
    y = y0 - height if y0 >= height else max(0.0, min(y0, canvas_wh[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    red, green, blue = colour
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 128  # luma, ITU-R BT.601
    ink = (0, 0, 0) if bright else (255, 255, 255)
    pen.text((x + margin - left, y + margin - top), text, fill=ink, font=font)


def _captioned(image: Tensor, caption: str, font: ImageFont.FreeTypeFont) -> Tensor:
    bottom = font.getbbox(TALL)[3]
    bar = Image.new("RGB", (image.shape[-1], int(bottom) + 8), (BACKGROUND,) * 3)
    ImageDraw.Draw(bar).text((4, 4), caption, fill=(255, 255, 255), font=font)
    return torch.cat([pil_to_tensor(bar), image.cpu()], dim=1)
