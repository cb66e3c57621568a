"""Work that is left out changes nothing: columns of masks, crops of resized images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from codetr.data.augment import RandomCrop, RandomShortSide, ResizeAndCrop, ScaleJitter
from codetr.data.collate import Collate
from codetr.data.copy_paste import CopyPaste
from codetr.data.dataset import seeded
from codetr.data.mask_bounds import fitted_to_masks, mask_bounds
from codetr.data.resize import resize_nearest
from codetr.data.sample import BoxSet, Sample
from codetr.data.segmentation import read_segmentations


@settings(max_examples=500, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=10722094)  # a tie of rounding, which a window around the object moved
def test_objects_drawn_in_their_columns_equal_those_drawn_in_the_image(seed: int) -> None:
    """Also where they lie partly or wholly outside, and for several polygons."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(8, 60, 2))
    polygons = []
    for _ in range(rng.integers(1, 4)):
        around = rng.uniform(-1, 1, (rng.integers(3, 9), 2)) * rng.uniform(1, 40)
        polygons.append((rng.uniform(-20, 80, 2) + around).round(2).flatten().tolist())
    found = read_segmentations(
        [{"segmentation": polygons}],
        torch.tensor([False]),
        torch.tensor([[height, width]]),
        Path("a.json"),
    ).masks([0], (height, width))
    expected = rle.decode(rle.merge(rle.frPyObjects(polygons, height, width)))
    assert np.array_equal(found[0].numpy(), expected)


def sample(rng: np.random.Generator, height: int, width: int, objects: int) -> Sample:
    """Random pixels and rectangles, channels last as files are decoded."""
    image = torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    masks = torch.zeros(objects, height, width, dtype=torch.uint8)
    for mask in masks:
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        mask[y : y + rng.integers(2, height), x : x + rng.integers(2, width)] = 1
    boxes = mask_bounds(masks)
    targets = BoxSet(
        boxes=boxes, labels=torch.arange(objects), scores=torch.ones(objects), masks=masks
    )
    return Sample(
        image=image.permute(2, 0, 1), targets=targets, image_id=1, original_size=(height, width)
    )


def same(a: Sample, b: Sample) -> bool:
    parts = [(a.image, b.image), *((getattr(a.targets, n), getattr(b.targets, n)) for n in NAMES)]
    return a.scale == b.scale and all(torch.equal(x, y) for x, y in parts)


NAMES = ("boxes", "labels", "scores", "masks")


@pytest.mark.parametrize(
    ("resize", "crop"),
    [
        (ScaleJitter(64, 0.1, 2.0), RandomCrop(64, 64)),
        (RandomShortSide((30, 50, 90), 200), RandomCrop(20, 48)),
    ],
)
def test_resize_and_crop_at_once_equals_one_after_the_other(resize, crop) -> None:
    both = ResizeAndCrop(resize, crop)
    for seed in range(30):
        given_sample = sample(np.random.default_rng(seed), 40, 56, 3)
        with seeded(seed):
            expected = crop(resize(given_sample))
        with seeded(seed):
            found = both(given_sample)
        assert same(found, expected)


def test_a_window_of_resized_masks() -> None:
    masks = sample(np.random.default_rng(0), 31, 47, 4).targets.masks
    assert masks is not None
    for size in ((62, 90), (13, 20), (31, 47)):
        whole = resize_nearest(masks, size)
        assert torch.equal(resize_nearest(masks, size, (3, 5, 8, 11)), whole[:, 3:11, 5:16])


def test_channels_last_images_give_the_same_pixels() -> None:
    """In every step that looks at pixels."""
    for seed in range(10):
        last = sample(np.random.default_rng(seed), 40, 56, 1)
        first = Sample(
            **{**vars(last), "image": last.image.contiguous()},
        )
        step = ResizeAndCrop(ScaleJitter(64, 0.1, 2.0), RandomCrop(64, 64))
        with seeded(seed):
            a = step(last)
        with seeded(seed):
            b = step(first)
        assert torch.equal(a.image, b.image)
        collate = Collate()
        assert torch.equal(collate([a]).images.pixels, collate([b]).images.pixels)


def test_normalising_in_place_is_the_usual_arithmetic() -> None:
    collate = Collate()
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    expected = (levels.float() - collate.mean) / collate.std
    assert torch.equal(collate.normalise(levels), expected)


def _plain_paste(mix: CopyPaste, below: Sample, above: Sample) -> tuple[Tensor, Tensor]:
    """Boxes and pixels by the definition: every mask as a whole."""
    below, above = fitted_to_masks(below), fitted_to_masks(above)
    chosen = mix._choose(len(above.targets))
    if not len(chosen):
        return below.targets.boxes, below.image
    assert above.targets.masks is not None
    assert below.targets.masks is not None
    covered = above.targets.masks[chosen].amax(dim=0)
    visible = below.targets.masks * (1 - covered)
    boxes = mask_bounds(visible)
    area = visible.sum(dim=(1, 2))
    keep = ((boxes - below.targets.boxes).abs() <= mix.max_shift_px).all(dim=1)
    keep |= area > mix.min_visible_px
    keep &= area > 0
    image = torch.where(covered.bool(), above.image, below.image)
    return torch.cat([boxes[keep], above.targets.boxes[chosen]]), image


def test_copy_paste_equals_its_definition() -> None:
    mix = CopyPaste(max_shift_px=3, min_visible_px=60)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        below, above = sample(rng, 40, 40, 5), sample(rng, 40, 40, 4)
        with seeded(seed):
            boxes, image = _plain_paste(mix, below, above)
        with seeded(seed):
            found = mix(below, above)
        assert torch.equal(found.targets.boxes, boxes)
        assert torch.equal(found.image, image)
        assert found.targets.masks is None
