"""Augmented samples whose random draws depend on (seed, epoch, index) only."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from codetr.data.augment import Augmentation, DrawAnother
from codetr.data.coco import CocoDetection
from codetr.data.mixing import Mix
from codetr.data.sample import Sample, SampleKey
from codetr.data.scaled_decoding import first_size
from codetr.errors import UserError

_ATTEMPTS = 1000  # at finding an image that the augmentation accepts


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed the generators that an augmentation may use (torch's, Python's, NumPy's) from integers
    >= 0 within the block, then restore them.

    For torch, only the CPU generator is seeded: ``torch.manual_seed`` would reseed CUDA too, in the
    middle of a training step if the main process loads the data.
    """
    state, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    seed = mixed_seed(*entropy)
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(python)
        np.random.set_state(numpy)


def mixed_seed(*entropy: int) -> int:
    """A 63-bit seed from several integers >= 0; similar integers give unrelated seeds."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


class AugmentedDataset(Dataset[Sample]):
    """The samples of ``source`` after ``augmentation``, as uint8 images.

    ``images`` (I,) int64 selects images of the source (None: all). With ``mix``, further random
    images are augmented and ``mix`` combines all into one sample. If the augmentation rejects an
    image (``DrawAnother``), a random one with the same orientation is used instead.

    Indexed by a SampleKey, or by an index alone for epoch 0. The same key gives the same sample in
    every process and worker and in any order of access, also after a run was resumed.

    ``scaled`` decodes JPEG files at 1/2, 1/4 or 1/8 of their size if the augmentation shrinks them
    further anyway. The random draws are the same, but pixels differ slightly; where the scaled size
    is not a whole number, rounding may shift a random crop.
    """

    def __init__(
        self,
        source: CocoDetection,
        augmentation: Augmentation,
        seed: int,
        mix: Mix | None = None,
        scaled: bool = False,
        images: Tensor | None = None,
    ) -> None:
        self.source = source
        self.images = torch.arange(len(source)) if images is None else images
        self.augmentation = augmentation
        self.seed = seed
        self.mix = mix
        self.scaled = scaled

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sizes(self) -> Tensor:
        """(I, 2) int64 (height, width) of the selected images, as annotated."""
        return self.source.annotations.sizes[self.images]

    def __getitem__(self, key: SampleKey | int) -> Sample:
        index, epoch, copy = key if isinstance(key, tuple) else SampleKey(key)
        with seeded(self.seed, epoch, index, copy):
            sample = self._augmented(index)
            if self.mix is None:
                return sample
            others = [self._random() for _ in range(self.mix.draw(epoch))]
            return self.mix(sample, *others) if others else sample

    def _random(self) -> Sample:
        """A random image, augmented."""
        return self._augmented(int(torch.randint(0, len(self), ()).item()))

    def _augmented(self, index: int) -> Sample:
        """An augmented image, with draws from torch's generator. Raises UserError if the
        augmentation rejects all images tried.
        """
        for _ in range(_ATTEMPTS):
            image = int(self.images[index])
            least = first_size(self.augmentation, self.source.size(image)) if self.scaled else None
            try:
                return self.augmentation(self.source.sample(image, least))
            except DrawAnother:
                index = self._another(index)
        raise UserError(
            f"data.train_augmentation rejected {_ATTEMPTS} images of "
            f"{self.source.annotations.path} in a row, since it left them no box: "
            "augment less, or check the boxes and masks of the file"
        )

    def _another(self, index: int) -> int:
        """A random image with the orientation of ``index`` (landscape or not)."""
        wide = self.sizes[:, 1] > self.sizes[:, 0]
        alike = (wide == wide[index]).nonzero().flatten()
        return int(alike[torch.randint(0, len(alike), ())])


class Batched(Dataset[list[Sample]]):
    """``samples`` indexed by lists of indices, for a loader whose sampler yields batches."""

    def __init__(self, samples: AugmentedDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, indices: Sequence[int]) -> list[Sample]:
        return [self.samples[index] for index in indices]
