import importlib.util
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codetr.data.files import is_image, missing_plugin
from codetr.data.images import ImageError, PixelRules, as_array, read_geometry, read_image
from codetr.errors import UserError


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_grey_tiff_files_are_turned(tmp_path: Path, orientation: int) -> None:
    """Pillow maps uncompressed ones into memory, and turned ones with their sides exchanged."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = Image.fromarray(_gradient()).convert("L")
    grey.save(tmp_path / "a.png", exif=exif)
    grey.save(tmp_path / "a.tif", exif=exif)
    assert torch.equal(read_image(tmp_path / "a.tif"), read_image(tmp_path / "a.png"))


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


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_grey_images_keep_the_upper_bits_of_their_own_depth(
    bits: int, suffix: str, tmp_path: Path
) -> None:
    values = np.linspace(0, 2**bits - 1, 24 * 32).astype(np.uint16).reshape(24, 32)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    expected = torch.from_numpy((values >> (bits - 8)).astype(np.uint8))
    assert read_image(tmp_path / f"deep.{suffix}").equal(expected.expand(3, -1, -1))


def test_depth_that_is_set_holds_for_dark_images(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 800, np.uint16)).save(tmp_path / "dark.png")
    assert read_image(tmp_path / "dark.png").unique().tolist() == [200]  # taken for 10 bits
    assert read_image(tmp_path / "dark.png", PixelRules(grey_bits=12)).unique().tolist() == [50]
    for bits in (7, 33):
        with pytest.raises(UserError, match=rf"data\.grey_bits={bits}"):
            PixelRules(grey_bits=bits)


def test_large_images_have_a_limit_that_can_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(_gradient()).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit counts no more
    assert read_image(tmp_path / "large.png").shape == (3, 24, 32)
    assert Image.MAX_IMAGE_PIXELS == 10
    rules = PixelRules(max_megapixels=0.0005)
    with pytest.raises(ImageError, match=r"has 32x24 pixels.*data\.max_megapixels=") as e:
        read_image(tmp_path / "large.png", rules)
    assert "annotation" not in str(e.value)
    with pytest.raises(UserError, match=r"data\.max_megapixels=0"):
        PixelRules(max_megapixels=0)


def test_clouds_of_points_are_no_images() -> None:
    assert not is_image("scan.pcd")
    assert is_image("scan.png")


def test_heic_is_read_in_a_process_that_has_listed_no_files(tmp_path: Path) -> None:
    """As in a worker of ``data=coco``: whatever reads an image lets Pillow open it."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    path = tmp_path / "a.heic"
    Image.fromarray(_gradient()).save(path, quality=90)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from codetr.data import images;"
            "path = Path(sys.argv[1]);"
            "assert images.read_geometry(path).size == tuple(images.read_image(path).shape[1:])",
            str(path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_geometry(path).size == _gradient().shape[:2]


def test_heic_is_read_or_said_to_need_its_plugin(tmp_path: Path) -> None:
    if importlib.util.find_spec("pillow_heif") is None:
        assert "codetr[heic]" in missing_plugin("a.HEIC", "b.png")
        assert missing_plugin("b.png") == ""
        (tmp_path / "a.heic").write_bytes(b"ftypheic")
        with pytest.raises(ImageError, match=r"codetr\[heic\]"):
            read_image(tmp_path / "a.heic")
        return
    assert is_image("a.HEIC")
    assert missing_plugin("a.HEIC") == ""
    Image.fromarray(_gradient()).save(tmp_path / "a.heic", quality=90)
    assert (read_image(tmp_path / "a.heic").float() - _rgb(_gradient()).float()).abs().mean() < 6


def test_large_images_of_few_bytes_are_limited_by_their_pixels_alone(tmp_path: Path) -> None:
    """Scanned drawings and blank tiles have a thousandth of a byte for a pixel, too."""
    path = tmp_path / "drawing.tif"
    Image.new("1", (5200, 5200), 1).save(path, compression="group4")
    assert path.stat().st_size < 1e-3 * 5200 * 5200
    assert read_image(path).shape == (3, 5200, 5200)
    with pytest.raises(ImageError, match=r"5200x5200 pixels, .* 20 million .*max_megapixels=28"):
        read_image(path, PixelRules(max_megapixels=20))


def test_large_images_are_copied_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0).integers(0, 256, (1103, 1301, 3), dtype=np.uint8)
    image = Image.fromarray(random)
    tracemalloc.start()
    copied = as_array(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(copied, random)
    assert peak < 1.5 * copied.nbytes
