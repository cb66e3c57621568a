"""The order of images: repeatable per epoch, and divided over ranks.

Both are DistributedSamplers, so that Lightning leaves them in place in a distributed run, and
calls ``set_epoch`` before every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from codetr.data.dataset import mixed_seed
from codetr.data.sample import SampleKey


class TrainSampler(DistributedSampler[SampleKey]):
    """Shuffled images for full batches, equally many on every rank; order by (seed, epoch) alone.

    Each ``batch_size`` keys in a row are a batch. With ``groups`` (num_images,) int64, such as
    portrait or landscape, its images are of one group, except where groups meet: at most one batch
    per boundary. With ``repeats`` (num_images,) int64 an image stands that often in an epoch, as
    numbered copies. An epoch repeats as many images as it takes to fill the last batches.
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

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[SampleKey]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.images), generator=generator)
        order = order[self.groups[order].argsort(stable=True)]
        num_batches = self.num_batches * self.num_replicas
        positions = torch.arange(num_batches * self.batch_size) % len(order)
        batches = order[positions].view(num_batches, self.batch_size)
        batches = batches[torch.randperm(num_batches, generator=generator)]
        chosen = batches[self.rank :: self.num_replicas].flatten()
        keys = zip(self.images[chosen].tolist(), self.copies[chosen].tolist(), strict=True)
        for image, copy in keys:
            yield SampleKey(image, self.epoch, copy)


class EvalSampler(DistributedSampler[int]):
    """Every image once over all ranks, in order: none repeated, none dropped.

    Ranks may differ by one image, so the number of batches may differ too: nothing in an
    evaluation step may wait for other ranks.
    """

    def __init__(self, num_images: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(num_images), num_replicas=world_size, rank=rank)  # type: ignore[arg-type]
        self.indices = range(rank, num_images, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
