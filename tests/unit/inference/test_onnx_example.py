"""The example reads and resizes images, in Pillow alone, as evaluation does."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

from codetr.data.augment import EvalResize
from codetr.data.images import as_rgb
from codetr.data.resize import resize_bilinear
from codetr.masks import paste

EXAMPLE = runpy.run_path(str(Path(__file__).resolve().parents[3] / "scripts/onnx_example.py"))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size_wh", [(171, 128), (40, 97), (640, 481), (320, 240)])
def test_resize_is_that_of_the_evaluation(antialias: bool, size_wh: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    found = np.asarray(EXAMPLE["resized"](Image.fromarray(pixels), size_wh, antialias))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if antialias:
        expected = resize(image, list(size_wh[::-1]), antialias=True)
    else:
        expected = resize_bilinear(image, size_wh[::-1], antialias=False)
    difference = np.abs(found.astype(int) - expected.permute(1, 2, 0).numpy())
    assert difference.max() <= 1, "Pillow rounds down where OpenCV rounds to nearest"


@pytest.mark.parametrize("antialias", [False, True])
def test_sizes_are_those_of_the_evaluation(antialias: bool) -> None:
    rule, evaluation = {"short": 128, "long": 213}, EvalResize(128, 213, antialias)
    sizes = np.random.default_rng(0).integers(20, 900, (200, 2)).tolist()
    for height, width in [(480, 640), (640, 480), (128, 128), *sizes]:
        found = EXAMPLE["resized_wh"](width, height, rule, antialias)
        assert found[::-1] == evaluation.output_size((height, width))
    assert EXAMPLE["resized_wh"](640, 480, {"canvas": 100}, antialias) == (100, 75)
    assert EXAMPLE["resized_wh"](640, 480, {}, antialias) == (640, 480)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16", "I"])
def test_colours_are_those_of_the_evaluation(mode: str) -> None:
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    if mode.startswith("I"):
        image = Image.fromarray(grey if mode == "I;16" else grey.astype(np.int32))
    else:
        image = Image.fromarray((grey >> 8).astype(np.uint8)).convert(mode)
    assert image.mode == mode
    found = np.asarray(EXAMPLE["as_rgb"](image))
    assert (found == np.asarray(as_rgb(image))).all()
    if mode.startswith("I"):
        assert (found[..., 0] == grey >> 8).all()
    with pytest.raises(SystemExit, match="floating-point"):
        EXAMPLE["as_rgb"](Image.new("F", (4, 4)))


def test_masks_are_pasted_as_in_evaluation() -> None:
    rng = np.random.default_rng(0)
    boxes = rng.uniform(-10, 90, (40, 2, 2))
    boxes.sort(axis=1)
    boxes = boxes.reshape(-1, 4)
    cells = rng.random((40, 14, 14)) > 0.3
    wanted = paste(torch.from_numpy(cells).double(), torch.from_numpy(boxes), (70, 80)).numpy()
    found = [
        EXAMPLE["pasted"](own, box, 80, 70) for own, box in zip(cells * 1.0, boxes, strict=True)
    ]
    assert np.stack(found).shape == wanted.shape
    assert (np.stack(found) != wanted).sum() <= 2, "probabilities of exactly a half"
    assert wanted.any(axis=(1, 2)).sum() > 20
