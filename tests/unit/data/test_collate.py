from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from codetr.boxes import cxcywh_to_xyxy
from codetr.data.augment import LsjEval
from codetr.data.collate import Collate
from codetr.data.sample import BoxSet, Sample
from codetr.errors import UserError

MEAN, STD = (10.0, 20.0, 30.0), (2.0, 4.0, 5.0)


def _sample(height: int, width: int, boxes: list[list[float]], teachers: int = 0) -> Sample:
    xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.arange(len(boxes))
    weak = BoxSet(boxes=xyxy[:1], labels=labels[:1], scores=torch.full((len(labels[:1]),), 0.5))
    return Sample(
        image=torch.randint(0, 256, (3, height, width), dtype=torch.uint8),
        targets=BoxSet.ground_truth(xyxy, labels),
        teachers=(weak,) * teachers,
        image_id=height,
        original_size=(height // 2, width // 2),
        scale=(2.0, 2.0),
        path="a.jpg",
    )


def test_pixels_padding_and_boxes_agree_with_each_sample() -> None:
    samples = [
        _sample(20, 30, [[0, 0, 30, 20], [3, 4, 9, 14]], teachers=2),
        _sample(33, 17, [], teachers=2),
        _sample(8, 8, [[1, 1, 5, 7]], teachers=2),
    ]
    batch = Collate(MEAN, STD, size_divisor=16)(samples)
    assert batch.images.pixels.shape == (3, 3, 48, 32)
    assert batch.images.padded_sizes.tolist() == [[32, 32], [48, 32], [16, 16]]
    assert batch.images.sizes.tolist() == [[20, 30], [33, 17], [8, 8]]
    for b, sample in enumerate(samples):
        height, width = sample.size
        pixels, padding = batch.images.pixels[b], batch.images.padding[b]
        undone = pixels * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        assert_close(undone[:, :height, :width], sample.image.float(), atol=1e-3, rtol=0)
        assert (pixels[:, padding] == 0).all()
        assert (~padding).sum() == height * width
        assert not padding[:height, :width].any()
        targets = batch.targets[b]
        assert targets.size.tolist() == [width, height]
        assert_close(cxcywh_to_xyxy(targets.boxes) * targets.size_whwh, sample.targets.boxes)
        assert targets.weights.tolist() == [1] * len(sample.targets)
        assert batch.infos[b].image_id == sample.image_id
        assert batch.infos[b].scale == (2.0, 2.0)
        assert batch.infos[b].original_size == sample.original_size
    assert len(batch.teachers) == 2
    assert [len(t) for t in batch.teachers[1]] == [1, 0, 1]
    assert batch.teachers[0][0].weights.tolist() == [0.5]
    assert_close(batch.teachers[0][0].boxes, batch.targets[0].boxes[:1])


def test_lsj_canvas_counts_as_image() -> None:
    sample = LsjEval(64)(_sample(20, 40, [[0, 0, 40, 20]]))
    batch = Collate()([sample, sample])
    assert batch.images.sizes.tolist() == [[64, 64]] * 2
    assert not batch.images.padding.any()
    assert_close(batch.targets[0].boxes, torch.tensor([[0.5, 0.25, 1.0, 0.5]]))
    grey = (torch.tensor([114.0] * 3) - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor(
        [58.395, 57.12, 57.375]
    )
    assert_close(batch.images.pixels[0, :, 63, 63], grey)


def test_without_teachers() -> None:
    assert Collate()([_sample(8, 8, [])]).teachers == ()


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match=r"data\.std"):
        Collate(MEAN, (1.0, 0.0, 1.0))
    with pytest.raises(UserError, match=r"data\.mean"):
        Collate((0.5,), STD)
    with pytest.raises(UserError, match="size_divisor=0"):
        Collate(size_divisor=0)


def test_masks_are_padded_to_the_size_of_their_own_image() -> None:
    samples = [_sample(20, 30, [[0, 0, 30, 20], [3, 4, 9, 14]]), _sample(33, 17, [])]
    masked = [
        replace(s, targets=replace(s.targets, masks=torch.ones(len(s.targets), *s.size).byte()))
        for s in samples
    ]
    batch = Collate(MEAN, STD, size_divisor=16)(masked)
    for target, sample, size in zip(
        batch.targets, samples, batch.images.padded_sizes.tolist(), strict=True
    ):
        height, width = sample.size
        assert target.masks.shape == (len(sample.targets), *size)
        assert target.masks[:, :height, :width].all()
        assert target.masks.sum() == len(sample.targets) * height * width
    assert all(t.masks is None for t in Collate(MEAN, STD)(samples).targets)
