"""Oracle: every object has a colour of its own; after pasting its box bounds that colour."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from codetr.data.annotations import load_annotations
from codetr.data.augment import (
    Augmentation,
    DetrAugmentation,
    FlipOnly,
    LsjAugmentation,
    LsjEval,
)
from codetr.data.coco import CocoDetection
from codetr.data.copy_paste import CopyPaste
from codetr.data.dataset import AugmentedDataset
from codetr.data.mask_bounds import mask_bounds
from codetr.data.resize import resize_nearest
from codetr.data.sample import BoxSet, Sample
from codetr.errors import UserError

MakeRoot = Callable[..., Path]
SIDE = 40


def _sample(masks: Tensor, first: int, teachers: int = 0) -> Sample:
    """Object i is painted in the grey value ``first`` + i; boxes are deliberately too large."""
    image = torch.zeros(3, *masks.shape[1:], dtype=torch.uint8)
    for i, mask in enumerate(masks):
        image[:, mask.bool()] = first + i
    boxes = mask_bounds(masks) + torch.tensor([-1.0, -1.0, 1.0, 1.0])
    targets = BoxSet.ground_truth(boxes, first + torch.arange(len(masks)))
    return Sample(
        image=image,
        targets=replace(targets, masks=masks),
        teachers=(targets,) * teachers,
        image_id=first,
        original_size=(SIDE, SIDE),
    )


def _rectangles(*rows: tuple[int, int, int, int]) -> Tensor:
    masks = torch.zeros(len(rows), SIDE, SIDE, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, rows, strict=True):
        mask[y0:y1, x0:x1] = 1
    return masks


def _bound(visible: Tensor) -> list[float]:
    y, x = visible.nonzero().T
    return [float(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1)]


def test_bounds_of_masks() -> None:
    masks = (torch.rand(30, 7, 9) > 0.9).to(torch.uint8)
    masks[4] = 0
    masks[5, 6, 8] = 1
    for mask, box in zip(masks, mask_bounds(masks).tolist(), strict=True):
        assert box == (_bound(mask) if mask.any() else [0, 0, 0, 0])
    assert mask_bounds(masks[:0]).shape == (0, 4)


def test_nearest_resize_equals_the_rule() -> None:
    masks = torch.randint(0, 2, (3, 7, 5), dtype=torch.uint8)
    for size in ((14, 20), (3, 2), (7, 5), (1, 30)):
        ours = resize_nearest(masks, size)
        for y in range(size[0]):
            for x in range(size[1]):
                source = masks[:, y * 7 // size[0], x * 5 // size[1]]
                assert ours[:, y, x].equal(source)


def test_boxes_bound_what_is_visible_and_pixels_come_from_the_right_image() -> None:
    numbers = set()
    for seed in range(40):
        torch.manual_seed(seed)
        below = _sample(_disjoint(5), first=10)
        above = _sample(_disjoint(4), first=100)
        result = CopyPaste(min_visible_px=20, max_shift_px=2)(below, above)
        targets = result.targets
        assert targets.masks is None
        pasted = targets.labels[targets.labels >= 100]
        numbers.add(len(pasted))
        shown = torch.isin(above.image[0], pasted.to(torch.uint8))
        assert result.image.equal(torch.where(shown, above.image, below.image))
        for box, label in zip(targets.boxes.tolist(), targets.labels.tolist(), strict=True):
            assert box == _bound(result.image[0] == label)
        for label in set(range(10, 15)) - set(targets.labels.tolist()):
            remains = result.image[0] == label
            before = _bound(below.image[0] == label)
            assert remains.sum() <= 20
            if remains.any():
                moved = [abs(a - b) for a, b in zip(before, _bound(remains), strict=True)]
                assert max(moved) > 2
        assert result.image_id == 10
        assert (targets.scores == 1).all()
    assert numbers == {0, 1, 2, 3, 4}


def _disjoint(count: int) -> Tensor:
    """Random blobs that share no pixel, so that each has all of its colour."""
    owner = torch.randint(0, count, (SIDE // 4, SIDE // 4)).repeat_interleave(4, 0)
    owner = owner.repeat_interleave(4, 1)
    near = torch.rand(SIDE, SIDE) > 0.2
    return torch.stack([((owner == i) & near) for i in range(count)]).to(torch.uint8)


def _all_pasted(below: Sample, above: Sample, **options: Any) -> Sample:
    for seed in range(100):
        torch.manual_seed(seed)
        result = CopyPaste(**options)(below, above)
        if (result.targets.labels >= 100).sum() == len(above.targets):
            return result
    raise AssertionError("never were all objects pasted")


def test_covered_objects_stay_by_shift_or_by_visible_pixels() -> None:
    above = _sample(_rectangles((0, 0, 20, 40)), first=100)
    below = _sample(
        _rectangles(
            (15, 0, 40, 15),  # 5 columns lost, moved by 5
            (10, 16, 24, 20),  # 16 pixels remain, moved by 10
            (8, 22, 23, 26),  # 12 pixels remain, moved by 12
            (2, 28, 12, 32),  # nothing remains, and it is near the origin of empty bounds
        ),
        first=10,
    )

    def kept(**options: Any) -> list[int]:
        labels = _all_pasted(below, above, **options).targets.labels
        return labels[labels < 100].tolist()

    assert kept() == [10, 11]  # the official 10 pixels
    assert kept(max_shift_px=4) == []
    assert kept(max_shift_px=4, min_visible_px=14) == [10, 11]
    assert kept(max_shift_px=100) == [10, 11, 12]


def test_at_most_one_less_than_the_limit_is_pasted() -> None:
    for _ in range(30):
        empty = _sample(_rectangles(), first=10)
        result = CopyPaste(max_pasted=3)(empty, _sample(_disjoint(6), first=100))
        assert len(result.targets) <= 2
    with pytest.raises(UserError, match="max_pasted=0"):
        CopyPaste(max_pasted=0)


def test_teachers_follow_the_pasted_objects() -> None:
    above = _sample(_rectangles((0, 0, 20, 20), (0, 30, 9, 39)), first=100, teachers=1)
    stray = BoxSet.ground_truth(torch.tensor([[25.0, 25, 39, 39]]), torch.tensor([7]))
    above = replace(above, teachers=(_joined(above.teachers[0], stray),))
    mostly, hardly, empty = [2.0, 2, 18, 30], [10.0, 0, 36, 20], [30.0, 5, 30, 9]
    boxes = BoxSet.ground_truth(torch.tensor([mostly, hardly, empty]), torch.tensor([1, 2, 3]))
    below = replace(_sample(_rectangles((30, 30, 36, 36)), first=10), teachers=(boxes,))
    result = _all_pasted(below, above)
    # Of the first, 288 of 448 pixels are covered; of the second 200 of 520. Stray belongs to none.
    assert result.teachers[0].labels.tolist() == [2, 3, 100, 101]


def _joined(a: BoxSet, b: BoxSet) -> BoxSet:
    return BoxSet.ground_truth(torch.cat([a.boxes, b.boxes]), torch.cat([a.labels, b.labels]))


def test_images_of_different_sizes_are_refused() -> None:
    small = _sample(_rectangles((1, 1, 5, 5)), first=10)
    large = replace(small, image=torch.zeros(3, 50, 50, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"\(40, 40\) and \(50, 50\) .*mix=null"):
        CopyPaste()(small, large)


@pytest.mark.parametrize(
    "augmentation",
    [
        LsjAugmentation(96),
        LsjEval(96),
        DetrAugmentation([48, 56], 110, [60, 70], 400, (30, 50), crop_probability=1.0),
        FlipOnly(),
    ],
    ids=lambda a: type(a).__name__,
)
def test_masks_move_with_their_boxes(augmentation: Augmentation) -> None:
    masks = _rectangles((3, 5, 20, 30), (22, 10, 38, 39), (1, 31, 19, 38))
    for seed in range(20):
        torch.manual_seed(seed)
        moved = augmentation(_sample(masks, first=10)).targets
        moved = moved.select(torch.tensor([m.any() for m in moved.masks], dtype=torch.bool))
        assert moved.masks is not None
        assert moved.masks.max() <= 1  # padding is no object
        around = moved.boxes  # one pixel larger on each side, times at most 2.8
        assert (mask_bounds(moved.masks) - around).abs().max() <= 2 * 2.8 + 1
        assert ((mask_bounds(moved.masks) - around) * torch.tensor([1, 1, -1, -1])).min() > -1.01


def test_dataset_reads_masks_and_pastes_repeatably(content: Any, make_root: MakeRoot) -> None:
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    root = make_root(content)
    annotations = load_annotations(root / "train.json", segmentations=True)
    source = CocoDetection(annotations, root / "train")
    lsj = LsjAugmentation(64, ratio=(0.8, 1.0))
    dataset = AugmentedDataset(source, lsj, seed=0, mix=CopyPaste(min_visible_px=1))
    samples = [dataset[i % 3] for i in range(6)]
    assert all(a.image.equal(b.image) for a, b in zip(samples[:3], samples[3:], strict=True))
    assert all(s.targets.masks is None and s.size == (64, 64) for s in samples)
    found = {len(AugmentedDataset(source, lsj, s, CopyPaste())[0].targets) for s in range(20)}
    assert found == {1, 2}
    for sample in samples:
        assert sample.targets.boxes.frac().abs().max() == 0  # bounds of masks

    content["annotations"][1].pop("segmentation")
    (root / "train.json").write_text(json.dumps(content))
    load_annotations(root / "train.json")
    with pytest.raises(UserError, match=r"annotation 101 .*\(no polygon\).*augmentation.mix=null"):
        load_annotations(root / "train.json", segmentations=True)


def test_masks_are_of_what_is_visible() -> None:
    """As the colours show it: of pasted objects and of those beneath; without asking, none."""
    torch.manual_seed(3)
    seen = 0
    for _ in range(20):
        below, above = (_apart((torch.rand(4, SIDE, SIDE) > 0.6).byte()) for _ in range(2))
        mixed = CopyPaste(masks=True)(_sample(below, 50), _sample(above, 100))
        masks = mixed.targets.masks
        assert masks is not None
        assert len(masks) == len(mixed.targets)
        for mask, label in zip(masks, mixed.targets.labels.tolist(), strict=True):
            assert torch.equal(mask.bool(), mixed.image[0] == label)
            seen += 1
        assert CopyPaste()(_sample(below, 50), _sample(above, 100)).targets.masks is None
    assert seen > 50


def _apart(masks: Tensor) -> Tensor:
    """Each pixel only in the last of the masks that have it, as painting shows it."""
    hidden = torch.zeros_like(masks[0])
    for i in reversed(range(len(masks))):
        masks[i] *= 1 - hidden
        hidden = hidden | masks[i]
    return masks
