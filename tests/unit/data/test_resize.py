import json
import zlib
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from codetr.data.augment import EvalResize, LsjEval
from codetr.data.collate import Collate
from codetr.data.images import read_image
from codetr.data.resize import resize_bilinear, resize_regions
from codetr.data.sample import BoxSet, Sample

CASES = {
    "r50": (EvalResize(800, 1333), 1),
    "lsj": (LsjEval(1024), 1),
    "swin_o365": (EvalResize(1280, 2048), 32),
}


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES)
def test_evaluation_pipeline_gives_the_official_bytes(shared: Path, case: str) -> None:
    info = json.loads((shared / "golden/test_pipeline/info.json").read_text())["cases"][case]
    resize, divisor = CASES[case]
    for name, expected in info["images"].items():
        image = read_image(shared / "data/coco_tiny/val2017" / name)
        none = BoxSet.ground_truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        sample = resize(
            Sample(image=image, targets=none, image_id=0, original_size=(1, 1), path=name)
        )
        pixels = Collate(size_divisor=divisor)([sample]).images.pixels[0]
        assert list(pixels.shape) == expected["tensor_shape"]
        assert zlib.crc32(pixels.numpy().tobytes()) == expected["crc32_f32"]
        assert_close(torch.tensor(sample.scale), torch.tensor(expected["scale_factor"][:2]))


def test_same_size_is_the_identity() -> None:
    image = torch.randint(0, 256, (3, 7, 5), dtype=torch.uint8)
    assert resize_bilinear(image, (7, 5), antialias=False).equal(image)


def by_opencv(image: Tensor, size: tuple[int, int]) -> Tensor:
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    resized = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(resized).permute(2, 0, 1)


def by_pillow(image: Tensor, size: tuple[int, int]) -> Tensor:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    resized = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


ORACLES = {"opencv": (False, by_opencv), "pillow": (True, by_pillow)}
SIDE = st.integers(1, 160)


@pytest.mark.parametrize("oracle", ORACLES)
@settings(deadline=None)  # the first call compiles
@given(source=st.tuples(SIDE, SIDE), target=st.tuples(SIDE, SIDE), seed=st.integers(0, 99))
@example(source=(480, 640), target=(800, 1067), seed=0)
@example(source=(480, 640), target=(96, 128), seed=0)  # a fifth
@example(source=(480, 640), target=(102, 136), seed=0)  # LSJ's smallest
@example(source=(427, 640), target=(240, 360), seed=0)  # no simple ratio
@example(source=(120, 90), target=(60, 45), seed=0)  # a half, which OpenCV could treat apart
@example(source=(1, 1), target=(5, 7), seed=0)
def test_equals_opencv_and_pillow_to_one_grey_level(
    oracle: str, source: tuple[int, int], target: tuple[int, int], seed: int
) -> None:
    antialias, expected = ORACLES[oracle]
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (*source, 3), dtype=torch.uint8, generator=generator)
    for given_image in (image.permute(2, 0, 1), image.permute(2, 0, 1).contiguous()):
        found = resize_bilinear(given_image, target, antialias)
        difference = (found.int() - expected(given_image, target).int()).abs()
        # Pillow and torch round twice: one value in ten million of such noise is two levels off,
        # four of 65 000 in the worst of 8000 images
        beyond = max(1, difference.numel() // 10_000) if antialias else 0
        assert (difference > 1).sum() <= beyond
        assert difference.max() <= (2 if antialias else 1)


def test_the_two_kinds_differ_where_they_shrink() -> None:
    stripes = torch.zeros(3, 40, 40, dtype=torch.uint8)
    stripes[:, :, ::4] = 255
    averaged, picked = (resize_bilinear(stripes, (10, 10), kind) for kind in (True, False))
    assert averaged.min() > 30
    assert not picked.any(), "the four nearest pixels are black"


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(90, 70), (31, 33), (20, 30)])
def test_a_window_is_a_part_of_the_whole(antialias: bool, size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    whole = resize_bilinear(image, size, antialias)
    found = resize_bilinear(image, size, antialias, (5, 3, 11, 9))
    assert torch.equal(found, whole[:, 5:16, 3:12])


@pytest.mark.parametrize("size", [(31, 9), (5, 40), (1, 1), (6, 7)])
def test_is_bilinear_within_one_grey_level(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, 12, 14), dtype=torch.uint8)
    real = torch.nn.functional.interpolate(image[None].double(), size, mode="bilinear")[0]
    assert (resize_bilinear(image, size, antialias=False) - real).abs().max() <= 1


def test_refuses_float_images() -> None:
    with pytest.raises(TypeError, match="uint8"):
        resize_bilinear(torch.rand(3, 4, 4), (2, 2), antialias=False)


@pytest.mark.parametrize("antialias", [False, True])
@settings(deadline=None, max_examples=60)
@given(
    source=st.tuples(SIDE, SIDE),
    target=st.tuples(SIDE, SIDE),
    band=st.integers(1, 4000),
    seed=st.integers(0, 99),
)
def test_bands_make_the_whole(
    antialias: bool, source: tuple[int, int], target: tuple[int, int], band: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *source), dtype=torch.uint8, generator=generator)
    whole = resize_bilinear(image, target, antialias)
    with mock.patch("codetr.data.resize._BAND_PIXELS", band):
        assert torch.equal(resize_regions(image, target, antialias), whole)
