"""Ours and the plain input pipeline, in the three stages that ``tools.bench.data`` measures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from codetr.checkpoints.experiment import compose_train
from codetr.data.augment import DrawAnother
from codetr.data.collate import Collate
from codetr.data.copy_paste import CopyPaste
from codetr.data.datamodule import CocoDataModule
from codetr.data.dataset import AugmentedDataset, seeded
from codetr.data.sample import Sample
from codetr.errors import UserError
from tools.bench import plain

Pipelines = dict[str, tuple[str, ...]]
"""Overrides of train.py by the name of a training pipeline."""

PIPELINES: Pipelines = {
    "detr": ("augmentation=detr",),
    "lsj_1024": ("augmentation=lsj_1024", "augmentation.mix=null"),
    "lsj_1024 and copy-paste": ("augmentation=lsj_1024",),
}


class Stages(Protocol):
    """An input pipeline: image ``index`` of turn ``turn`` as a normalised float32 tensor."""

    def decode(self, index: int) -> Any:
        """The image files read, with boxes and masks."""
        ...

    def augment(self, index: int, turn: int, decoded: Any) -> Any:
        """Resized, cropped, mirrored, padded, pasted."""
        ...

    def convert(self, augmented: Any) -> Tensor:
        """Normalised (..., 3, H, W)."""
        ...


def run_stages(stages: Stages, index: int, turn: int) -> Tensor:
    """All of it, for one image."""
    return stages.convert(stages.augment(index, turn, stages.decode(index)))


@dataclass(frozen=True)
class OurStages:
    """What a data worker does with an image: an item of the dataset, and collating."""

    dataset: AugmentedDataset
    collate: Collate

    def decode(self, index: int) -> list[Sample]:
        """One image, or the two that copy-paste takes."""
        return [self.dataset.source[i] for i in self._indices(index)]

    def augment(self, index: int, turn: int, decoded: list[Sample]) -> Sample:
        """As the dataset does."""
        with seeded(self.dataset.seed, turn, index):
            augmented = [self._accepted(sample) for sample in decoded]
            return augmented[0] if self.dataset.mix is None else self.dataset.mix(*augmented)

    def _accepted(self, sample: Sample) -> Sample:
        """Augmented; where that asks for another image, the same one with other numbers."""
        while True:
            try:
                return self.dataset.augmentation(sample)
            except DrawAnother:
                continue

    def convert(self, augmented: Sample) -> Tensor:
        """A batch of one."""
        return self.collate([augmented]).images.pixels

    def _indices(self, index: int) -> tuple[int, ...]:
        return _with_partner(index, len(self.dataset), self.dataset.mix is not None)


@dataclass(frozen=True)
class PlainStages:
    """The same with Pillow and numpy. ``options`` are ``augmentation.train`` and ``.mix``."""

    dataset: AugmentedDataset
    options: Mapping[str, Any]
    mix: Mapping[str, Any] | None
    collate: Collate

    def decode(self, index: int) -> list[plain.Item]:
        """One image, or two."""
        return [
            self._load(i) for i in _with_partner(index, len(self.dataset), self.mix is not None)
        ]

    def _load(self, index: int) -> plain.Item:
        annotations = self.dataset.source.annotations
        path = self.dataset.source.images / annotations.file_names[index]
        rows = slice(*annotations.offsets[index : index + 2].tolist())
        kept = annotations.usable[rows]
        boxes = annotations.clipped[rows][kept].double().numpy()
        if annotations.segmentations is None:
            return plain.load(path, boxes, ())
        numbers = (kept.nonzero().flatten() + rows.start).tolist()
        outlines = [annotations.segmentations.polygons(number) for number in numbers]
        if not all(outlines):
            raise UserError(
                f"{annotations.path} has run lengths: give --images a folder with polygons alone"
            )
        return plain.load(path, boxes, outlines)

    def augment(self, index: int, turn: int, decoded: list[plain.Item]) -> plain.Item:
        """One step after the other."""
        rng = np.random.default_rng((turn, index))
        change = plain.large_scale_jitter if "canvas" in self.options else plain.detr
        augmented = [change(item, self.options, rng) for item in decoded]
        if self.mix is None:
            return augmented[0]
        return plain.copy_paste(augmented[0], augmented[1], self.mix, rng)

    def convert(self, augmented: plain.Item) -> Tensor:
        """One image."""
        mean, std = (v.flatten().tolist() for v in (self.collate.mean, self.collate.std))
        return plain.to_tensor(augmented.image, mean, std)


def _with_partner(index: int, count: int, pair: bool) -> tuple[int, ...]:
    return (index, (index * 7 + 3) % count) if pair else (index,)


def build_stages(overrides: tuple[str, ...]) -> dict[str, Stages]:
    """``ours`` and ``baseline`` of a configuration of train.py, on its training split.

    Raises UserError for an ``augmentation.mix`` that the plain pipeline does not have.
    """
    cfg, data = _build(overrides)
    dataset = data.train_dataset
    if not isinstance(dataset.mix, CopyPaste | None):
        raise UserError(
            f"augmentation.mix={type(dataset.mix).__name__}: the plain pipeline has copy-paste "
            "alone: give augmentation.mix=null"
        )
    options, mix = (_plain(cfg.augmentation.get(key)) for key in ("train", "mix"))
    assert options is not None
    return {
        "ours": OurStages(dataset, data.collate),
        "baseline": PlainStages(dataset, options, mix, data.collate),
    }


def build_dataset(overrides: tuple[str, ...]) -> AugmentedDataset:
    """The training split of a configuration of train.py."""
    return _build(overrides)[1].train_dataset


def _build(overrides: tuple[str, ...]) -> tuple[DictConfig, CocoDataModule]:
    cfg = compose_train([*overrides, "data.num_workers=0"])
    with redirect_stdout(io.StringIO()):  # the report on the data
        data: CocoDataModule = instantiate(cfg.data)
        data.setup("fit")
    return cfg, data


def _plain(part: DictConfig | None) -> Mapping[str, Any] | None:
    return None if part is None else dict(OmegaConf.to_container(part, resolve=True))  # type: ignore[arg-type]
