import json
import zlib
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from codetr.data.augment import EvalResize, LsjEval
from codetr.data.collate import Collate
from codetr.data.images import read_image
from codetr.data.resize import resize_bilinear_opencv
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
    assert resize_bilinear_opencv(image, (7, 5)).equal(image)


@pytest.mark.parametrize("size", [(31, 9), (5, 40), (1, 1), (6, 7)])
def test_is_bilinear_within_one_grey_level(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, 12, 14), dtype=torch.uint8)
    real = torch.nn.functional.interpolate(image[None].double(), size, mode="bilinear")[0]
    assert (resize_bilinear_opencv(image, size) - real).abs().max() <= 1


def test_refuses_float_images() -> None:
    with pytest.raises(TypeError, match="uint8"):
        resize_bilinear_opencv(torch.rand(3, 4, 4), (2, 2))
