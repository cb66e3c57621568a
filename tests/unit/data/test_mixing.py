"""Oracle: every object has a colour of its own, which its box bounds in the mixed image, too."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from codetr.data.annotations import load_annotations
from codetr.data.augment import FlipOnly
from codetr.data.coco import CocoDetection
from codetr.data.dataset import AugmentedDataset, seeded
from codetr.data.mixing import Mix, MixUp, Mosaic
from codetr.data.sample import BoxSet, Sample, SampleKey
from codetr.errors import UserError


def _sample(colour: int, height: int = 40, width: int = 40) -> Sample:
    """White, with one rectangle of ``colour`` (below 100), which a teacher has found too."""
    image = torch.full((3, height, width), 255, dtype=torch.uint8)
    image[:, 10:30, 8:24] = colour
    masks = torch.zeros(1, height, width, dtype=torch.uint8)
    masks[:, 10:30, 8:24] = 1
    boxes = torch.tensor([[8.0, 10.0, 24.0, 30.0]])
    targets = replace(BoxSet.ground_truth(boxes, torch.tensor([colour])), masks=masks)
    teacher = BoxSet(boxes=boxes, labels=targets.labels, scores=torch.tensor([0.5]))
    return Sample(
        image=image,
        targets=targets,
        teachers=(teacher,),
        image_id=colour,
        original_size=(height, width),
    )


def _bounds(covered: Tensor) -> list[float]:
    rows, columns = covered.any(dim=1).nonzero(), covered.any(dim=0).nonzero()
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("seed", range(20))
def test_boxes_and_masks_of_a_mosaic_bound_their_objects(seed: int) -> None:
    parts = [_sample(10), _sample(30, 40, 40), _sample(50), _sample(70)]
    with seeded(seed):  # images are as large as half the canvas, so that pixels stay as they are
        mixed = Mosaic(canvas=80)(*parts)
    assert mixed.size == (80, 80)
    seen = []
    for box_set in mixed.box_sets:
        for box, label in zip(box_set.boxes, box_set.labels, strict=True):
            covered = (mixed.image == label).all(dim=0)
            torch.testing.assert_close(box, torch.tensor(_bounds(covered)).float())
        seen.append(set(box_set.labels.tolist()))
    assert seen[0] == seen[1]
    visible = {c for c in (10, 30, 50, 70) if _large(mixed.image == c)}
    assert seen[0] == visible
    assert mixed.targets.masks is not None
    for mask, label in zip(mixed.targets.masks, mixed.targets.labels, strict=True):
        assert torch.equal(mask.bool(), (mixed.image == label).all(dim=0))


def _large(covered: Tensor) -> bool:
    if not covered.any():
        return False
    x0, y0, x1, y1 = _bounds(covered.all(dim=0))
    return bool(x1 - x0 > 1 and y1 - y0 > 1)


def test_images_of_a_mosaic_meet_in_one_point_and_the_rest_is_grey() -> None:
    low = Mosaic(canvas=80, centre=(0.25, 0.25))
    mixed = low(*(_sample(c) for c in (10, 30, 50, 70)))
    white = (mixed.image == 255).all(dim=0)
    grey = (mixed.image == 114).all(dim=0)
    assert grey[60:].all()
    assert grey[:, 60:].all()
    assert not grey[:60, :60].any()
    assert white[:60, :60].any()


def test_mixup_blends_two_images_of_different_size_and_keeps_all_boxes() -> None:
    first, second = _sample(10, 40, 60), _sample(90, 50, 30)
    with seeded(3):
        mixed = MixUp()(first, second)
    assert mixed.size == (50, 60)
    assert mixed.targets.labels.tolist() == [10, 90]
    assert mixed.teachers[0].labels.tolist() == [10, 90]
    assert mixed.targets.masks is not None
    assert mixed.targets.masks.shape == (2, 50, 60)
    share = (mixed.image[0, 20, 16].item() - 90) / (10 - 90)  # where both have their object
    assert 0 < share < 1
    expected = 255 * share + 114 * (1 - share)  # beside the second image
    assert mixed.image[0, 5, 55].item() == pytest.approx(expected, abs=2)


def test_large_alpha_gives_equal_shares() -> None:
    mixed = MixUp(alpha=1e6)(_sample(0), _sample(80))
    assert mixed.image[0, 20, 16].item() == 40


def test_alpha_may_be_a_whole_number() -> None:
    """As ``augmentation.mix.alpha=2`` gives it."""
    assert MixUp(alpha=2)(_sample(0), _sample(80)).size == (40, 40)


def test_a_point_at_the_edge_leaves_every_image_a_pixel() -> None:
    mixed = Mosaic(canvas=80, centre=(0.001, 0.001))(*(_sample(c) for c in (10, 30, 50, 70)))
    assert mixed.size == (80, 80)
    assert mixed.targets.labels.tolist() == [70]


@pytest.mark.parametrize("mix", [Mosaic(canvas=80, epochs=2), MixUp(epochs=2)])
def test_the_last_epochs_see_images_as_they_are(mix: Mosaic | MixUp) -> None:
    assert [bool(mix.draw(epoch)) for epoch in range(4)] == [True, True, False, False]
    assert not replace(mix, probability=0.0).draw(0)


@pytest.mark.parametrize("mix", [Mosaic(canvas=64, probability=0.5), MixUp(probability=0.5)])
def test_the_same_key_gives_the_same_sample(mix: Mix, make_root, content) -> None:
    root = make_root(content)
    source = CocoDetection(load_annotations(root / "train.json"), root / "train")
    dataset = AugmentedDataset(source, FlipOnly(), seed=0, mix=mix)
    for index in range(3):
        key = SampleKey(index, 1)
        assert torch.equal(dataset[key].image, dataset[key].image)
    samples = [dataset[SampleKey(0, epoch)] for epoch in range(12)]
    sizes = {len(sample.targets) for sample in samples}
    assert 1 in sizes, "some stay as they are"
    assert max(sizes) > 1, "some are mixed"
    for sample in samples:
        height, width = sample.size
        limit = torch.tensor([width, height, width, height])
        assert ((sample.targets.boxes >= 0) & (sample.targets.boxes <= limit)).all()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Mosaic(canvas=80, probability=2), "probability=2"),
        (lambda: Mosaic(canvas=80, epochs=-1), "epochs=-1"),
        (lambda: Mosaic(canvas=80, centre=(0.75, 0.25)), "centre"),
        (lambda: Mosaic(canvas=1), "canvas=1"),
        (lambda: Mosaic(canvas=80, min_box_px=-1), "min_box_px=-1"),
        (lambda: MixUp(alpha=0), "alpha=0"),
    ],
)
def test_values_that_cannot_be_meant_are_named(make, named) -> None:
    with pytest.raises(UserError, match=f"augmentation.mix.{named}"):
        make()
