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
    per boundary. An epoch repeats as many images as it takes to fill the last batches.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        groups: Tensor | None = None,
    ) -> None:
        super().__init__(range(num_images), num_replicas=world_size, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.num_images = num_images
        self.batch_size = batch_size
        self.groups = torch.zeros(num_images, dtype=torch.int64) if groups is None else groups
        self.num_batches = -(-num_images // (batch_size * world_size))

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[SampleKey]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_images, generator=generator)
        order = order[self.groups[order].argsort(stable=True)]
        num_batches = self.num_batches * self.num_replicas
        positions = torch.arange(num_batches * self.batch_size) % self.num_images
        batches = order[positions].view(num_batches, self.batch_size)
        batches = batches[torch.randperm(num_batches, generator=generator)]
        for image in batches[self.rank :: self.num_replicas].flatten().tolist():
            yield SampleKey(image, self.epoch)


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
