"""Run an exported ONNX detector without PyTorch: numpy, onnxruntime and pillow are all it takes.

``python scripts/onnx_example.py model.onnx image.jpg [out.png]``
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

GREY = 114
COLOUR = (255, 40, 40)


def as_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; of 16-bit grey values the high byte, where Pillow alone would cut them at 255."""
    if image.mode == "F":
        sys.exit("error: floating-point pixels have no fixed range: give an 8-bit image")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def resized_wh(width: int, height: int, rule: dict[str, int], antialias: bool) -> tuple[int, int]:
    """The image's size in the model: within short and long sides, or a square canvas. With
    ``antialias`` the short side is rounded and the long one cut off, as in DETR's code.
    """
    if not rule:
        return width, height
    short, long = (rule["canvas"],) * 2 if "canvas" in rule else (rule["short"], rule["long"])
    least, most = min(width, height), max(width, height)
    if antialias and "canvas" not in rule:
        least_px = max(short if most / least * short <= long else round(long * least / most), 1)
        most_px = max(int(least_px * most / least), 1)
        return (least_px, most_px) if width <= height else (most_px, least_px)
    scale = min(long / most, short / least)
    return max(int(width * scale + 0.5), 1), max(int(height * scale + 0.5), 1)


def resized(image: Image.Image, size_wh: tuple[int, int], antialias: bool) -> Image.Image:
    """Bilinear; without ``antialias`` between the four nearest pixels, as OpenCV shrinks."""
    if antialias:
        return image.resize(size_wh, Image.Resampling.BILINEAR)
    x, y = image.width / size_wh[0], image.height / size_wh[1]
    matrix = (x, 0, 0, 0, y, 0)
    return image.transform(size_wh, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def prepare(image: Image.Image, about: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``images`` (1, 3, H, W) uint8 and ``sizes`` (1, 2) for the model, and the scale (x, y)."""
    rule = about["resize"]
    width, height = resized_wh(*image.size, rule, about["antialias"])
    pixels = np.asarray(resized(image, (width, height), about["antialias"]))
    scale = np.array([width / image.width, height / image.height], dtype=np.float32)
    if "canvas" in rule:  # grey around it, which counts as image
        padding = ((0, rule["canvas"] - height), (0, rule["canvas"] - width), (0, 0))
        pixels = np.pad(pixels, padding, constant_values=GREY)
    sizes = np.array([pixels.shape[:2]], dtype=np.int64)
    divisor = about["size_divisor"]
    down, across = (-side % divisor for side in pixels.shape[:2])
    pixels = np.pad(pixels, ((0, down), (0, across), (0, 0)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), sizes, scale


def pasted(cells: np.ndarray, box: np.ndarray, width: int, height: int) -> np.ndarray:
    """(height, width) bool: the probabilities ``cells`` (S, S) of the cells that ``box`` (4,) is
    cut into, read between their centres at each pixel's centre, zero outside; at least a half.
    """
    side = len(cells)
    weights = []
    for pixels, low, high in ((height, box[1], box[3]), (width, box[0], box[2])):
        place = (np.arange(pixels) + 0.5 - low) / max(high - low, 1e-6) * side + 0.5
        place = place.clip(0, side + 1)  # in cells with a border of zeros
        first = np.minimum(place.astype(int), side)
        own = np.zeros((pixels, side + 2))
        own[np.arange(pixels), first] = 1 - (place - first)
        own[np.arange(pixels), first + 1] = place - first
        weights.append(own)
    return weights[0] @ np.pad(cells, 1) @ weights[1].T >= 0.5


def main() -> None:
    """Detect, print and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="exported with top_k, the default")
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path, nargs="?", help="the image with boxes")
    parser.add_argument("--threshold", type=float, default=0.3)
    options = parser.parse_args()
    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["codetr"])
    if about["outputs"][:3] != ["scores", "labels", "boxes_xyxy_px"]:
        sys.exit("error: the model gives raw outputs: export it with top_k=300")
    image = as_rgb(ImageOps.exif_transpose(Image.open(options.image)))
    images, sizes, scale = prepare(image, about)
    scores, labels, boxes, *masks = (
        output[0] for output in session.run(None, {"images": images, "sizes": sizes})
    )
    boxes = boxes / np.tile(scale, 2)  # back to the original image
    kept = np.flatnonzero(scores > options.threshold)
    for i in kept if masks else ():  # scores and cells of masks, of a model that finds some
        mask = pasted(masks[1][i], boxes[i], *image.size)
        image.paste(COLOUR, mask=Image.fromarray((110 * mask).astype(np.uint8)))
    pen = ImageDraw.Draw(image)
    for i in kept:
        name, box = about["class_names"][labels[i]], boxes[i]
        print(f"{name} {scores[i]:.4f} " + " ".join(f"{side:.2f}" for side in box))
        pen.rectangle(box.tolist(), outline=COLOUR, width=2)
        pen.text((box[0] + 3, box[1] + 2), f"{name} {scores[i]:.2f}", fill=COLOUR)
    if options.out:
        image.save(options.out)


if __name__ == "__main__":
    main()
