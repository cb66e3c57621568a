from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codetr.data.images import ImageError, read_image


def _gradient() -> np.ndarray:
    y, x = np.mgrid[:24, :32]
    return np.stack([x * 8, y * 10, 255 - x * 7], axis=2).astype(np.uint8)


def _rgb(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_lossless_formats_give_exact_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(_gradient()).save(path)
    assert read_image(path).equal(_rgb(_gradient()))


def test_grey_palette_and_alpha_become_rgb(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(_gradient()[..., 0]).save(path)
    assert read_image(path).equal(_rgb(_gradient()[..., :1]).expand(3, -1, -1))
    palette = Image.fromarray(_gradient()).quantize(16)
    palette.save(path)
    assert read_image(path).equal(_rgb(np.array(palette.convert("RGB"))))
    alpha = np.concatenate([_gradient(), np.full((24, 32, 1), 9, np.uint8)], axis=2)
    Image.fromarray(alpha).save(path)
    assert read_image(path).equal(_rgb(_gradient()))


def test_16_bit_png_keeps_the_high_byte(tmp_path: Path) -> None:
    values = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = torch.from_numpy((values >> 8).astype(np.uint8))
    assert read_image(tmp_path / "deep.png").equal(expected.expand(3, -1, -1))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_jpeg_colours(tmp_path: Path, mode: str) -> None:
    Image.fromarray(_gradient()).convert(mode).save(tmp_path / "image.jpg", quality=98)
    image = read_image(tmp_path / "image.jpg")
    assert (image.float() - _rgb(_gradient()).float()).abs().mean() < 3


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "jpg"), ("CMYK", "jpg"), ("RGB", "png")])
def test_exif_orientation_is_applied(tmp_path: Path, mode: str, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(_gradient()).convert(mode).save(path, exif=exif, quality=98)
    upright = _rgb(np.rot90(_gradient(), k=-1).copy()).float()
    image = read_image(path)
    assert image.shape == upright.shape
    assert (image.float() - upright).abs().mean() < 3


def test_bad_files_are_named_in_one_line(tmp_path: Path) -> None:
    text, cut = tmp_path / "text.jpg", tmp_path / "cut.jpg"
    text.write_text("no image")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:900])
    for path in (text, cut, tmp_path / "absent.jpg"):
        with pytest.raises(ImageError, match=path.name) as error:
            read_image(path)
        assert "\n" not in str(error.value)
