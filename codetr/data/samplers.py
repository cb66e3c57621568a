"""Samplers: reproducible orders of images and batches, distributed over ranks.

Both are DistributedSamplers, so that Lightning keeps them in a distributed run and calls
``set_epoch`` before every epoch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from codetr.data.dataset import mixed_seed
from codetr.data.sample import SampleKey


class TrainSampler(DistributedSampler[SampleKey]):
    """Shuffled images in full batches, equally many on every rank. The order depends on (seed,
    epoch) only: any number of ranks trains on the same sequence of batches, except those that pad
    the last step.

    Every ``batch_size`` consecutive keys are a batch. With ``groups`` (num_images,) int64, such as
    portrait or landscape, a batch has images of one group, except for at most one batch at each
    boundary between groups. With ``repeats`` (num_images,) int64 an image occurs that often in an
    epoch, as numbered copies. Images are repeated to fill the last batches of an epoch.

    ``start`` skips that many batches of this rank, which an interrupted run has already trained on.
    It applies until it is set again.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        groups: Tensor | None = None,
        repeats: Tensor | None = None,
    ) -> None:
        super().__init__(range(num_images), num_replicas=world_size, rank=rank, seed=seed)  # type: ignore[arg-type]
        times = torch.ones(num_images, dtype=torch.int64) if repeats is None else repeats
        self.images = torch.arange(num_images).repeat_interleave(times)
        self.copies = torch.arange(len(self.images)) - (times.cumsum(0) - times)[self.images]
        self.batch_size = batch_size
        self.groups = torch.zeros_like(self.images) if groups is None else groups[self.images]
        self.num_batches = -(-len(self.images) // (batch_size * world_size))
        self.start = 0

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[SampleKey]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.images), generator=generator)
        order = order[self.groups[order].argsort(stable=True)]
        num_batches = self.num_batches * self.num_replicas
        positions = torch.arange(num_batches * self.batch_size) % len(order)
        batches = order[positions].view(num_batches, self.batch_size)
        needed = -(-len(order) // self.batch_size)  # further batches make the ranks equal
        shuffled = batches[torch.randperm(needed, generator=generator)]
        own = torch.cat([shuffled, batches[needed:]])[self.rank :: self.num_replicas]
        chosen = own[self.start :].flatten()
        keys = zip(self.images[chosen].tolist(), self.copies[chosen].tolist(), strict=True)
        for image, copy in keys:
            yield SampleKey(image, self.epoch, copy)


class EvalSampler(DistributedSampler[list[int]]):
    """The batches of an evaluation: every image exactly once over all ranks.

    All images of a batch have the same row in ``padded_sizes`` (num_images, 2) int64 (height,
    width), so that none is padded further than in a batch of its own: detections in an image do not
    depend on the batch. Batches have at most ``batch_size`` images. With ``mixed``, sizes may
    differ within a batch.

    Ranks get about equally many pixels, but not equally many batches: an evaluation step must not
    wait for other ranks. Every rank has a batch if there are at least as many images as ranks.
    """

    def __init__(
        self,
        padded_sizes: Tensor,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        mixed: bool = False,
    ) -> None:
        super().__init__(range(len(padded_sizes)), num_replicas=world_size, rank=rank)  # type: ignore[arg-type]
        most = max(min(batch_size, len(padded_sizes) // world_size), 1)
        batches = _batches(padded_sizes, most, mixed)
        pixels = [len(b) * int(padded_sizes[b].amax(dim=0).prod()) for b in batches]
        self.batches = _share(batches, pixels, world_size)[rank]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _batches(sizes: Tensor, most: int, mixed: bool) -> list[list[int]]:
    """Batches of at most ``most`` images in order, sorted by their first image."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for image, size in enumerate(sizes.tolist()):
        groups[() if mixed else tuple(size)].append(image)
    return sorted(
        group[start : start + most]
        for group in groups.values()
        for start in range(0, len(group), most)
    )


def _share(batches: Sequence[list[int]], costs: Sequence[int], ranks: int) -> list[list[list[int]]]:
    """Distribute batches over ranks: the most costly first, each to the rank with the least total;
    batches of a rank keep their order.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for position in sorted(range(len(batches)), key=lambda i: -costs[i]):
        rank = loads.index(min(loads))
        shares[rank].append(position)
        loads[rank] += costs[position]
    return [[batches[position] for position in sorted(share)] for share in shares]
