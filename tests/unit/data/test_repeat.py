import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codetr.data.annotations import load_annotations
from codetr.data.augment import Chain, FlipOnly
from codetr.data.datamodule import CocoDataModule
from codetr.data.dataset import mixed_seed
from codetr.data.repeat import RepeatFactor, image_counts
from codetr.data.samplers import TrainSampler
from codetr.data.sources import CocoFolder
from codetr.errors import UserError

FOLDER = CocoFolder(
    train_annotations="train.json",
    train_images="train",
    val_annotations="val.json",
    val_images="val",
)


def _content(rows: list[list[int]]) -> dict[str, Any]:
    """One image per row, with boxes of these categories (of 0 to 4)."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 9, "width": 9} for i in range(len(rows))]
    boxes = [
        {"id": i, "image_id": image, "category_id": c, "bbox": [1, 1, 3, 3], "iscrowd": 0}
        for i, (image, c) in enumerate((i, c) for i, row in enumerate(rows) for c in row)
    ]
    categories = [{"id": c, "name": str(c)} for c in range(5)]
    return {"images": images, "annotations": boxes, "categories": categories}


def _naive(rows: list[list[int]], threshold: float) -> list[int]:
    share = {c: sum(c in row for row in rows) / len(rows) for c in range(5)}
    of_class = {c: max(1.0, math.sqrt(threshold / f)) for c, f in share.items() if f}
    return [math.ceil(max((of_class[c] for c in row), default=1.0)) for row in rows]


@pytest.mark.parametrize("threshold", [1e-3, 0.2, 0.5, 1.0])
def test_factors_equal_a_naive_count(tmp_path: Path, threshold: float) -> None:
    common = [[0, 0, 1], [0], [], [1, 0], [0, 0], [0, 2], [0], [0, 1]]
    rows = [*common * 4, [3], [3, 0, 3], [0, 2]]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(_content(rows)))
    repeats = RepeatFactor(threshold)(load_annotations(path))
    assert repeats.tolist() == _naive(rows, threshold)
    if threshold == 0.5:
        assert repeats.max() == 3  # sqrt(0.5 / (2 / 35)) = 2.96
    counts = image_counts(str(path))
    assert counts == tuple(sum(c in row for row in rows) for c in range(5))


@pytest.mark.parametrize("threshold", [0, -1, 1.5])
def test_bad_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(UserError, match=r"data\.repeat\.threshold"):
        RepeatFactor(threshold)


@pytest.mark.parametrize("world_size", [1, 3])
def test_sampler_gives_every_copy_once(world_size: int) -> None:
    repeats = torch.tensor([1, 3, 1, 1, 2, 5, 1, 1, 1, 4, 1, 1])
    groups = torch.tensor([0, 1] * 6)
    keys = []
    for rank in range(world_size):
        sampler = TrainSampler(12, 2, 0, rank, world_size, groups, repeats)
        sampler.set_epoch(3)
        own = list(sampler)
        assert len(own) == len(sampler)
        assert own == list(sampler)
        keys += own
    assert {k.epoch for k in keys} == {3}
    wanted = {(i, c) for i, n in enumerate(repeats.tolist()) for c in range(n)}
    assert {(k.image, k.copy) for k in keys} == wanted
    assert len(keys) - len(wanted) < 2 * world_size
    mixed = [
        a for a, b in zip(keys[::2], keys[1::2], strict=True) if groups[a.image] != groups[b.image]
    ]
    assert len(mixed) <= 2


def test_first_copy_is_seeded_as_without_repeats() -> None:
    assert mixed_seed(3, 7, 11, 0) == mixed_seed(3, 7, 11)
    assert len({mixed_seed(3, 7, 11, copy) for copy in range(4)}) == 4


def test_copies_are_augmented_differently(make_root: Callable[..., Path]) -> None:
    root = make_root(_content([[0], [0], [0], [1, 0]]), _content([[0]]))
    for i in range(4):
        _paint(root / "train" / f"{i}.png")
    module = CocoDataModule(
        root,
        FOLDER,
        FlipOnly(),
        Chain(),
        batch_size=1,
        num_workers=0,
        repeat=RepeatFactor(1.0),
    )
    module.setup("fit")
    loader = module.train_dataloader()
    batches = [b for epoch in range(8) for b in _epoch(loader, epoch)]
    assert len(batches) == 8 * (3 + 2)  # sqrt(1 / 0.25) = 2 of the last image
    last = [b.images.pixels for b in batches if b.infos[0].image_id == 3]
    pairs = [not a.equal(b) for a, b in zip(last[::2], last[1::2], strict=True)]
    assert 0 < sum(pairs) < len(pairs)


def _epoch(loader: Any, epoch: int) -> list[Any]:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def _paint(path: Path) -> None:
    """An image that is not its own mirror image."""
    pixels = np.zeros((9, 9, 3), np.uint8)
    pixels[:, :3] = 200
    Image.fromarray(pixels).save(path)
