"""Decoding JPEG files at a part of their size."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms import v2

from codetr.data import augment
from codetr.data.annotations import load_annotations
from codetr.data.augment import (
    Apply,
    Augmentation,
    Chain,
    DetrAugmentation,
    EvalResize,
    FlipOnly,
    LsjAugmentation,
)
from codetr.data.coco import CocoDetection
from codetr.data.dataset import AugmentedDataset, seeded
from codetr.data.images import ImageError, read_image, read_scaled
from codetr.data.scaled_decoding import first_size

HEIGHT, WIDTH = 417, 602  # no multiples of 8


def detr() -> DetrAugmentation:
    return DetrAugmentation([48, 90, 130, 190], 240, [60, 100], 400, (40, 90))


def lsj() -> LsjAugmentation:
    return LsjAugmentation(200, (0.1, 2.0))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> CocoDetection:
    return make_source(tmp_path_factory.mktemp("odd"), HEIGHT, WIDTH)


def make_source(folder: Path, height: int, width: int) -> CocoDetection:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x / 3, y / 2, (x + y) / 5], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "a.jpg", quality=95)
    box = [100, 80, 300, 200]
    outline = [100, 80, 400, 80, 400, 280, 100, 280]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": height, "width": width}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": [outline]}
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return CocoDetection(load_annotations(folder / "a.json", segmentations=True), folder)


@pytest.mark.parametrize("recipe", [detr, lsj, lambda: EvalResize(100, 160)])
def test_decoded_images_are_never_smaller_than_their_target(
    source: CocoDetection, recipe: Callable[[], Augmentation], monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, decoded = [], []
    plain = augment.resize

    def spy(sample, size, *rest, **named):
        if sample.original_size == (HEIGHT, WIDTH) and sample.size[0] in _parts(HEIGHT):
            targets.append(size)
            decoded.append(sample.size)
        return plain(sample, size, *rest, **named)

    monkeypatch.setattr(augment, "resize", spy)
    augmentation = recipe()
    for seed in range(40):
        dataset = AugmentedDataset(source, augmentation, seed, scaled=True)
        before = len(targets)
        dataset[0]
        (height, width), (least_height, least_width) = decoded[before], targets[before]
        assert height >= least_height or height == HEIGHT
        assert width >= least_width or width == WIDTH
        assert height < 2 * least_height or height <= -(-HEIGHT // 8) or width < 2 * least_width
    assert min(decoded) < (HEIGHT, WIDTH)  # it happened at all


def _parts(side: int) -> list[int]:
    return [-(-side // part) for part in (1, 2, 4, 8)]


@pytest.mark.parametrize("recipe", [detr, lsj])
def test_the_target_is_foreseen_without_changing_chance(recipe, source, monkeypatch) -> None:
    first: list[tuple[int, int]] = []
    plain = augment.resize

    def spy(sample, size, *rest, **named):
        first.append(size)
        return plain(sample, size, *rest, **named)

    monkeypatch.setattr(augment, "resize", spy)
    augmentation = recipe()
    for seed in range(20):
        with seeded(seed):
            foreseen = first_size(augmentation, (HEIGHT, WIDTH))
            before = len(first)
            augmentation(source[0])
        assert first[before] == foreseen


@pytest.mark.parametrize(
    "augmentation",
    [
        Chain(()),
        FlipOnly(),
        Chain((Apply(v2.ColorJitter(0.2)), detr())),
        Chain((Apply(v2.RandomCrop(50)), detr())),
        lambda sample: sample,
    ],
)
def test_pixels_that_are_looked_at_first_are_all_decoded(augmentation, source) -> None:
    assert first_size(augmentation, (HEIGHT, WIDTH)) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("recipe", [detr, lsj])
def test_boxes_masks_and_scale_follow(tmp_path: Path, recipe) -> None:
    """Of an image whose parts are whole pixels; else rounding may move a random crop."""
    size = (416, 600)
    source = make_source(tmp_path, *size)
    for seed in range(20):
        whole = AugmentedDataset(source, recipe(), seed)[0]
        scaled = AugmentedDataset(source, recipe(), seed, scaled=True)[0]
        assert scaled.original_size == whole.original_size == size
        assert scaled.targets.labels.equal(whole.targets.labels)
        assert scaled.scale == pytest.approx(whole.scale)
        assert_close(scaled.targets.boxes, whole.targets.boxes, atol=1e-3, rtol=0)
        for a, b in ((scaled.image, whole.image), (scaled.targets.masks, whole.targets.masks)):
            assert a.shape == b.shape
            assert (a.float() - b.float()).abs().mean() < 1


def test_a_sample_read_at_a_part_of_its_size(source: CocoDetection) -> None:
    sample = source.sample(0, (100, 150))
    assert sample.size == (105, 151)
    assert source.sample(0, (104, 151)).size == (209, 301)  # Pillow rounds down to be sure
    assert source.sample(0, (300, 100)).size == (417, 602)
    masks = source.sample(0, (104, 150)).targets.masks
    assert masks.shape == (1, 105, 151)
    assert masks.sum() == pytest.approx(300 * 200 / 16, rel=0.05)


def test_other_formats_are_read_whole_and_turned_files_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((64, 128, 3), np.uint8))
    picture.save(tmp_path / "a.png")
    assert shapes(tmp_path / "a.png", (8, 16)) == ((3, 64, 128), (64, 128))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 128, 64)
    assert shapes(tmp_path / "a.jpg", (32, 16)) == ((3, 32, 16), (128, 64))
    assert shapes(tmp_path / "a.jpg", (33, 16)) == ((3, 64, 32), (128, 64))
    assert shapes(tmp_path / "a.jpg", (129, 65)) == ((3, 128, 64), (128, 64))


def shapes(path: Path, least: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, int]]:
    image, size = read_scaled(path, least)
    return tuple(image.shape), size


@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.parametrize("least", [None, (10, 10), (200, 300), (417, 602)])
def test_a_file_of_another_size_is_the_same_error_at_any_part(
    tmp_path: Path, parts: int, least: tuple[int, int] | None
) -> None:
    """Also where the file has just a part of the size that the annotations say."""
    source = make_source(tmp_path, HEIGHT, WIDTH)
    height, width = -(-HEIGHT // parts), -(-WIDTH // parts)
    Image.new("RGB", (width, height)).save(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=f"is {width}x{height} pixels .* says {WIDTH}x{HEIGHT}"):
        source.sample(0, least)
