"""The subject of an analysis: a checkpoint's detector and training schemes, and images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from codetr.boxes import cxcywh_to_xyxy
from codetr.checkpoints.experiment import without_initial_weights
from codetr.checkpoints.transfer import load_weights
from codetr.checkpoints.trusted import build_part
from codetr.classes import ClassList, with_ids_of
from codetr.data.datamodule import CocoDataModule
from codetr.errors import UserError
from codetr.inference.command import open_chosen
from codetr.inference.draw import denormalise
from codetr.inference.pictures import relabelled
from codetr.models.detectors.protocol import MAIN, Detector
from codetr.structures import Assignment, Batch, Decoded, Memory, Predictions, QueryGroup
from codetr.supervision.assigners import HungarianMatcher
from codetr.training.evaluate import build_split
from codetr.training.recorded_config import as_built, with_run

T = TypeVar("T", bound=nn.Module)


@dataclass(frozen=True)
class Subject:
    """An opened checkpoint. It is called ``name`` in tables and figures and ``source`` in messages;
    ``schemes`` are the training schemes of its run by name, ``stored`` the names of their tensors
    in the file; ``config`` is the configuration of its evaluation.
    """

    name: str
    source: str
    detector: nn.Module
    schemes: nn.ModuleDict
    stored: tuple[str, ...]
    classes: ClassList
    data: CocoDataModule
    device: torch.device
    config: DictConfig

    @cached_property
    def model(self) -> Detector:
        """The detector, typed by its protocol."""
        return self.detector  # type: ignore[return-value]

    @cached_property
    def matcher(self) -> HungarianMatcher:
        """The matcher of the main queries in the checkpoint's training. Raises UserError if it had
        none.
        """
        found = matcher_of(self.schemes)
        if found is None:
            raise UserError(
                f"{self.source}: no scheme of its training matches queries with objects one to "
                "one, which this analysis needs: leave it out"
            )
        return found

    def batches(self, images: int | None) -> Iterator[Batch]:
        """The first ``images`` images of the split (None: all) as batches of one on the device,
        with the model's class indices as labels.
        """
        for batch in islice(self.data.test_dataloader(), images):
            targets = [relabelled(t, self.data.classes, self.classes) for t in batch.targets]
            yield replace(batch, targets=tuple(targets)).to(self.device)

    def decode(self, memory: Memory) -> Decoded:
        """The decoded main queries."""
        return decode_main(self.model, memory)

    def match(self, layers: Sequence[Predictions], batch: Batch) -> tuple[Assignment, ...]:
        """Match the queries of every layer with the objects of a batch."""
        return self.matcher(layers, batch.targets)

    def trained_scheme(self, kind: type[T]) -> T:
        """The training scheme of class ``kind``, with the checkpoint's weights. Raises UserError if
        the training had none, or the file lacks its weights.
        """
        found = {key: s for key, s in self.schemes.items() if isinstance(s, kind)}
        if not found:
            raise UserError(
                f"{self.source}: its training had no scheme {kind.__name__.lower()}, which this "
                "analysis needs: leave it out"
            )
        key, scheme = next(iter(found.items()))
        if not {f"{key}.{name}" for name in scheme.state_dict()} <= set(self.stored):
            raise UserError(
                f"{self.source}: holds no weights of the scheme {key}: give the run's best.ckpt or "
                "last.ckpt (model.safetensors has the detector alone)"
            )
        return scheme

    def picture(self, batch: Batch) -> Tensor:
        """The network's input for a batch of one image, uint8 (3, H, W), without padding."""
        height, width = batch.images.sizes[0].tolist()
        pixels = batch.images.pixels[0, :, :height, :width].float().cpu()
        mean, std = (values.flatten().tolist() for values in self._normalisation)
        return denormalise(pixels, mean, std)

    @property
    def _normalisation(self) -> tuple[Tensor, Tensor]:
        return self.data.collate.mean, self.data.collate.std


def decode_main(model: Detector, memory: Memory) -> Decoded:
    """The decoded main queries of a detector."""
    (main,) = model.queries(memory)
    return model.decode(memory, [QueryGroup(name=MAIN, queries=main)])[MAIN]


def matcher_of(schemes: nn.Module) -> HungarianMatcher | None:
    """The one-to-one matcher of ``schemes``, if any."""
    return next((part for part in schemes.modules() if isinstance(part, HungarianMatcher)), None)


def boxes_px(batch: Batch) -> Tensor:
    """(N, 4) xyxy true boxes of a batch of one image, in pixels of the network's input."""
    (targets,) = batch.targets
    return cxcywh_to_xyxy(targets.boxes) * targets.size_whwh


def open_subject(
    cfg: DictConfig, name: str, device: torch.device, given: Sequence[str] = ()
) -> Subject:
    """Open the checkpoint of ``cfg`` (conf/analyse.yaml, with one checkpoint). Data and
    preprocessing default to the checkpoint's. Raises UserError for whatever a user can correct.
    """
    source = cfg.checkpoint
    content = open_chosen(cfg)
    full = as_built(with_run(cfg, content.record, given), cfg, given, schemes=True)
    full.data.eval_batch_size = 1  # so that images are padded to the size divisor alone
    data = build_split(full, source)
    classes = with_ids_of(content.record.classes, data.classes, data.val_annotations)
    detector = build_part(without_initial_weights(full.model.detector), source)
    schemes = nn.ModuleDict({key: build_part(part, source) for key, part in full.scheme.items()})
    load_weights(content, source, detector, classes, schemes)
    return Subject(
        name=name,
        source=source,
        detector=detector.to(device).eval(),
        schemes=schemes.to(device).eval(),
        stored=tuple(content.schemes),
        classes=classes,
        data=data,
        device=device,
        config=full,
    )


def names_of(sources: Sequence[str]) -> list[str]:
    """Short distinct names of checkpoints: the run's folder, the file's name, or both; the full
    text if these are ambiguous. Raises UserError if two are the same.
    """
    if len(set(sources)) < len(sources):
        twice = next(source for source in sources if sources.count(source) > 1)
        raise UserError(f"checkpoint={twice}: given twice: give it once")
    paths = [Path(source) for source in sources]
    folders = [_run(path).name or path.stem for path in paths]
    stems = [path.stem for path in paths]
    both = [f"{folder}/{stem}" for folder, stem in zip(folders, stems, strict=True)]
    for names in (folders, stems, both):
        if len(set(names)) == len(names):
            return names
    return list(sources)


def _run(path: Path) -> Path:
    """The run's folder; checkpoints of single epochs are one level deeper (conf/checkpointing)."""
    return path.parent.parent if path.parent.name == "epochs" else path.parent
