from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from codetr.data.samplers import EvalSampler, TrainSampler


def _epoch(epoch: int = 0, **options: Any) -> list[list[int]]:
    """The batches of an epoch, as a DataLoader cuts them."""
    sampler = TrainSampler(**options)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(keys) == len(sampler)
    assert all(key.epoch == epoch for key in keys)
    return list(BatchSampler([key.image for key in keys], options["batch_size"], drop_last=False))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("num_images", "batch_size"), [(23, 4), (24, 4), (2, 4), (9, 1)])
def test_epoch_covers_every_image_in_full_equal_shares(
    num_images: int, batch_size: int, world_size: int
) -> None:
    ranks = [
        _epoch(num_images=num_images, batch_size=batch_size, seed=1, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    assert all(len(batch) == batch_size for batch in batches)
    images = [i for batch in batches for i in batch]
    assert set(images) == set(range(num_images))
    counts = torch.bincount(torch.tensor(images))
    assert counts.max() - counts.min() <= 1
    assert len(images) - num_images < batch_size * world_size


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        torch.rand(epoch + 1)  # the global generator does not matter
        return _epoch(epoch, num_images=40, batch_size=4, seed=seed)

    assert order(0, 3) == order(0, 3)
    assert len({str(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_groups_share_batches_only_at_their_boundary() -> None:
    groups = torch.tensor([0, 1] * 50 + [1] * 7)
    for epoch in range(5):
        batches = _epoch(epoch, num_images=107, batch_size=4, seed=0, groups=groups)
        mixed = [b for b in batches if len(set(groups[b].tolist())) > 1]
        assert len(mixed) <= 2  # where the groups meet, and where the epoch is filled up
        assert {i for b in batches for i in b} == set(range(107))
        kinds = [int(groups[b[0]]) for b in batches]
        assert kinds != sorted(kinds)  # batches are shuffled


def _sizes(num_images: int, kinds: int) -> Tensor:
    """(height, width) by image, of so many kinds."""
    generator = torch.Generator().manual_seed(num_images)
    return torch.randint(1, kinds + 1, (num_images, 2), generator=generator) * 32


@pytest.mark.parametrize("kinds", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("num_images", [0, 1, 7, 8, 203])
def test_evaluation_sees_every_image_once_beside_images_of_its_size(
    num_images: int, batch_size: int, kinds: int
) -> None:
    sizes = _sizes(num_images, kinds)
    for world_size in (1, 2, 3):
        ranks = [EvalSampler(sizes, batch_size, rank, world_size) for rank in range(world_size)]
        batches = [batch for rank in ranks for batch in rank]
        assert sorted(i for batch in batches for i in batch) == list(range(num_images))
        assert all(len(list(rank)) == len(rank) for rank in ranks)
        assert all(len(batch) <= batch_size for batch in batches)
        assert all(len(sizes[batch].unique(dim=0)) == 1 for batch in batches)
        assert all(len(rank) for rank in ranks) or num_images < world_size
        for rank in ranks:  # the first images of a split come first
            assert [batch[0] for batch in rank] == sorted(batch[0] for batch in rank)


def test_batches_of_an_evaluation_are_as_full_as_they_can_be() -> None:
    sizes = torch.tensor([[32, 64], [64, 32]] * 5)
    assert list(EvalSampler(sizes, 3)) == [[0, 2, 4], [1, 3, 5], [6, 8], [7, 9]]
    assert list(EvalSampler(sizes, 3, mixed=True)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_of_an_evaluation_have_equally_many_pixels_to_one_batch(world_size: int) -> None:
    sizes = _sizes(203, 4)
    ranks = [EvalSampler(sizes, 4, rank, world_size) for rank in range(world_size)]
    pixels = [sum(int(sizes[b].prod(dim=1).sum()) for b in rank) for rank in ranks]
    assert max(pixels) - min(pixels) <= 4 * int(sizes.prod(dim=1).max())


def test_one_large_batch_is_divided_over_the_ranks() -> None:
    sizes = torch.tensor([[32, 32]] * 8)
    assert [list(EvalSampler(sizes, 8, rank, 2)) for rank in range(2)] == [
        [[0, 1, 2, 3]],
        [[4, 5, 6, 7]],
    ]


@pytest.mark.parametrize("repeats", [None, torch.tensor([1, 2] * 11 + [3])])
@pytest.mark.parametrize("groups", [None, torch.tensor([0, 1] * 11 + [1])])
def test_ranks_share_the_order_of_one(groups: Tensor | None, repeats: Tensor | None) -> None:
    """A run may go on within an epoch on another number of ranks."""
    options = {"num_images": 23, "batch_size": 2, "seed": 5, "groups": groups, "repeats": repeats}
    alone = _epoch(2, **options)
    for ranks in (2, 3, 4):
        shares = [_epoch(2, **options, rank=r, world_size=ranks) for r in range(ranks)]
        together = [batch for step in zip(*shares, strict=True) for batch in step]
        assert together[: len(alone)] == alone
        assert len(together) - len(alone) < ranks


@pytest.mark.parametrize("start", [0, 1, 3])
def test_an_epoch_goes_on_from_a_position(start: int) -> None:
    sampler = TrainSampler(23, 4, 0, rank=1, world_size=2)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.start = start
    assert list(sampler) == whole[4 * start :]
    assert len(sampler) == len(whole)  # as the epoch's: Lightning counts from its beginning
