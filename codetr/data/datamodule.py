"""The LightningDataModule for all sources of COCO-format data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from rich import print as rich_print
from torch import Tensor
from torch.utils.data import DataLoader

from codetr.classes import ClassList
from codetr.data.annotations import CocoAnnotations
from codetr.data.augment import Augmentation, output_size
from codetr.data.check import check_dataset, check_split, require_class_count
from codetr.data.class_choice import ClassChoice, with_classes
from codetr.data.coco import CocoDetection
from codetr.data.collate import IMAGENET_MEAN, IMAGENET_STD, Collate
from codetr.data.dataset import AugmentedDataset, Batched
from codetr.data.ground_truth import DetrFilter, GroundTruthFilter
from codetr.data.images import PixelRules
from codetr.data.loading import load_split
from codetr.data.mixing import Mix
from codetr.data.placement import AUTO, require_reading
from codetr.data.samplers import EvalSampler, TrainSampler
from codetr.data.sources import Source, Split, Splits
from codetr.data.step_loader import StepLoader, remaining_batches
from codetr.data.teachers import Parallel, TeacherBoxes
from codetr.data.workers import SignalSafeLoader
from codetr.errors import UserError
from codetr.structures import Batch

log = logging.getLogger(__name__)

EQUAL_SIZE, PADDED = "equal_size", "padded"

ReadTeachers = Callable[[Sequence[str | Path], CocoAnnotations], TeacherBoxes]
"""(result files, annotations of the split) -> the teachers' boxes of each image."""

SEPARATE_TEACHERS: ReadTeachers = partial(TeacherBoxes, merge=Parallel())
DETR_FILTER = DetrFilter()


class CocoDataModule(LightningDataModule):
    """Training and evaluation batches (``codetr.structures.Batch``) of the splits that ``source``
    provides below ``root``.

    Shuffling and augmentation depend on (``seed``, epoch, image) only, not on the number of
    workers.

    Args:
        mean, std: RGB, 0 to 255, those the backbone was trained with.
        size_divisor: every image is padded to a multiple of it.
        group_by_aspect: put landscape and portrait images into separate batches.
        cache: keep decoded images in the memory of each process.
        scaled_decoding: decode training JPEGs at 1/2, 1/4 or 1/8 of their size if the augmentation
            shrinks them further anyway: faster, with slightly different pixels.
        eval_split: "train" or "val", used for validation and test in batches of at most
            ``eval_batch_size`` images.
        eval_batches: "equal_size": only images that are padded to the same size share a batch, so
            that results do not depend on the batch; "padded": any do.
        num_images: use only so many images of the training split, evenly spaced among those with
            objects (None: all).
        mix: combines augmented images into one training sample (copy-paste, for which masks are
            read; mosaic; mixup).
        masks: training batches have the masks of their objects.
        repeat: how often each image occurs in an epoch.
        tolerate_broken: log missing and damaged image files instead of raising an error.
        teachers: result files of teacher detectors on the training split, read by
            ``teacher_boxes``.
        ground_truth: which boxes and images are trained on.
        boxes: interpretation of boxes if the sizes of annotations and files differ
            (``codetr.data.placement``).
        classes: arguments of a ``ClassChoice``.
        derived: folder for annotation files that had to be changed.
        max_megapixels, grey_bits: see ``PixelRules``.

    Raises UserError for bad arguments and, in ``setup``, for bad data.
    """

    def __init__(
        self,
        root: str | Path,
        source: Source,
        train_augmentation: Augmentation,
        eval_augmentation: Augmentation,
        batch_size: int = 2,
        eval_batch_size: int = 2,
        eval_batches: str = EQUAL_SIZE,
        num_workers: int = 2,
        seed: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size_divisor: int = 1,
        group_by_aspect: bool = False,
        cache: bool = False,
        scaled_decoding: bool = False,
        eval_split: str = "val",
        num_images: int | None = None,
        mix: Mix | None = None,
        masks: bool = False,
        repeat: Callable[[CocoAnnotations], Tensor] | None = None,
        tolerate_broken: bool = False,
        teachers: Sequence[str | Path] = (),
        teacher_boxes: ReadTeachers = SEPARATE_TEACHERS,
        ground_truth: GroundTruthFilter = DETR_FILTER,
        boxes: str = AUTO,
        classes: Mapping[str, Any] | None = None,
        max_megapixels: float = 180.0,
        grey_bits: int | None = None,
        derived: str | Path = "data/converted",
    ) -> None:
        super().__init__()
        if eval_split not in ("train", "val"):
            raise UserError(f"data.eval_split={eval_split}: choose train or val")
        if eval_batches not in (EQUAL_SIZE, PADDED):
            raise UserError(
                f"data.eval_batches={eval_batches}: choose {EQUAL_SIZE}, or {PADDED} where speed "
                "matters more than numbers that do not depend on the batch"
            )
        if min(batch_size, eval_batch_size) < 1 or num_workers < 0:
            raise UserError(
                f"data.batch_size={batch_size} data.eval_batch_size={eval_batch_size} "
                f"data.num_workers={num_workers}: give sizes of at least 1 and workers >= 0"
            )
        if num_images is not None and num_images < 1:
            raise UserError(f"data.num_images={num_images}: give at least 1, or null for all")
        if seed < 0:
            raise UserError(f"seed={seed}: give an integer of at least 0")
        self.root = Path(root).expanduser()
        self.source = source
        self.train_augmentation = train_augmentation
        self.eval_augmentation = eval_augmentation
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.eval_batches = eval_batches
        self.num_workers = num_workers
        self.seed = seed
        self.collate = Collate(mean, std, size_divisor)
        self.group_by_aspect = group_by_aspect
        self.cache = cache
        self.scaled_decoding = scaled_decoding
        self.eval_split = eval_split
        self.num_images = num_images
        self.mix, self.masks = mix, masks
        self.repeat = repeat
        self.tolerate_broken = tolerate_broken
        self.teachers, self.teacher_boxes = tuple(teachers), teacher_boxes
        self.ground_truth = ground_truth
        require_reading(boxes)
        self.boxes, self.class_choice = boxes, ClassChoice(**(classes or {}))
        self.derived = Path(derived).expanduser()
        self.pixels = PixelRules(max_megapixels=max_megapixels, grey_bits=grey_bits)
        self._found: Splits | None = None
        self._annotations: dict[str, CocoAnnotations] = {}
        self._train: AugmentedDataset | None = None
        self._eval: AugmentedDataset | None = None

    @property
    def classes(self) -> ClassList:
        """The class list of the training split, or of the evaluated one if only that was set up."""
        assert self._annotations, "call setup(stage) before classes"
        name = "train" if "train" in self._annotations else self.eval_split
        return self._annotations[name].classes

    @property
    def val_annotations(self) -> Path:
        """The annotation file of the evaluated split."""
        return self._annotations[self.eval_split].path

    @property
    def train_dataset(self) -> AugmentedDataset:
        """Augmented training samples, uint8."""
        assert self._train is not None, "call setup('fit') before train_dataset"
        return self._train

    @property
    def eval_dataset(self) -> AugmentedDataset:
        """Samples of the evaluated split, uint8."""
        assert self._eval is not None, "call setup(stage) before eval_dataset"
        return self._eval

    def split(self, name: str) -> Split:
        """The location of ``train`` or ``val``, which the source may have to create first."""
        splits = self._splits()
        return splits.train if name == "train" else splits.val

    def prepare_data(self) -> None:
        """Create the data if the source does so."""
        self._splits()

    def setup(self, stage: str) -> None:
        """Load annotations and check the data, once. Both splits for ``fit``, else the evaluated
        one.
        """
        splits = self._splits()
        checks = self.tolerate_broken, splits.max_lost, splits.box_format
        if self._train is None and stage == "fit":
            outlines = self.masks or (self.mix is not None and self.mix.needs_masks)
            train = self._load("train", None, segmentations=outlines)
            val = self._load("val", train.classes)
            report = check_dataset((train, splits.train.images), (val, splits.val.images), *checks)
            rank_zero_only(rich_print)(report)
            teachers = self.teacher_boxes(self.teachers, train) if self.teachers else None
            self._train = AugmentedDataset(
                self._detection("train", self._supervising(train), teachers),
                self.train_augmentation,
                self.seed,
                self.mix,
                self.scaled_decoding,
                self._images(train),
            )
        if self._eval is None:
            if self._train is None:
                evaluated = self._load(self.eval_split, None)
                check_split(evaluated, self.split(self.eval_split).images, *checks)
            source = self._detection(self.eval_split, self._annotations[self.eval_split])
            self._eval = AugmentedDataset(source, self.eval_augmentation, self.seed)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of this rank."""
        dataset = self.train_dataset
        repeats = None if self.repeat is None else self.repeat(dataset.source.annotations)
        sizes = dataset.sizes
        sampler = TrainSampler(
            len(dataset),
            self.batch_size,
            self.seed,
            *self._rank(),
            (sizes[:, 0] > sizes[:, 1]).long() if self.group_by_aspect else None,
            None if repeats is None else repeats[dataset.images],
        )
        return StepLoader(
            dataset,
            step_batches=1 if self.trainer is None else self.trainer.accumulate_grad_batches,
            window=lambda: remaining_batches(self.trainer),
            batch_size=self.batch_size,
            sampler=sampler,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader:
        """The evaluated split, with every image exactly once over all ranks."""
        return SignalSafeLoader(
            Batched(self.eval_dataset),
            batch_size=None,
            sampler=self._eval_sampler(),
            **self._loading(),
        )

    def test_dataloader(self) -> DataLoader:
        """The same as ``val_dataloader``."""
        return self.val_dataloader()

    def _eval_sampler(self) -> EvalSampler:
        batch_size, mixed = self.eval_batch_size, self.eval_batches == PADDED
        images, (rank, ranks) = len(self.eval_dataset), self._rank()
        if images < ranks:
            raise UserError(
                f"{self.val_annotations}: has {images} images for {ranks} devices, each of which "
                f"must evaluate one: give trainer.devices={max(images, 1)} or fewer"
            )
        annotated = self.eval_dataset.source.annotations.sizes.tolist()
        known = [output_size(self.eval_augmentation, (h, w)) for h, w in annotated]
        if None in known and batch_size > 1 and not mixed:
            batch_size = 1
            _warn(
                "the output size of augmentation.eval is unknown (it has no output_size, or one of "
                "its steps has none): images are evaluated one by one, so that AP does not depend "
                "on the batch"
            )
        sizes = [after or before for after, before in zip(known, annotated, strict=True)]
        padded = self.collate.padded(torch.tensor(sizes).reshape(-1, 2))
        if mixed and batch_size > 1 and len(padded.unique(dim=0)) > 1:
            _warn(
                f"data.eval_batches={PADDED}: images are padded to the largest of their batch, so "
                "AP depends on data.eval_batch_size and on the number of devices; with "
                f"data.eval_batches={EQUAL_SIZE} it does not"
            )
        return EvalSampler(padded, batch_size, rank, ranks, mixed)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move the batch asynchronously if it is in pinned memory. Lightning would block for every
        tensor of the batch.
        """
        # Asynchronous copies to these are not ordered with later accesses by the host.
        blocking = torch.device(device).type in ("cpu", "mps")
        return batch.to(device, non_blocking=not blocking)

    def _load(
        self, name: str, classes: ClassList | None, segmentations: bool = False
    ) -> CocoAnnotations:
        if name not in self._annotations:
            splits = self._splits()
            self._annotations[name] = load_split(
                splits,
                name,
                self.boxes,
                self.derived,
                classes=classes,
                segmentations=segmentations,
                num_images=self.num_images if name == "train" else None,
                notify=rank_zero_only(log.warning),
            )
            require_class_count(self._annotations[name], splits.num_classes)
        return self._annotations[name]

    def _splits(self) -> Splits:
        if self._found is None:  # cached, since choosing classes rewrites annotation files
            found = self.source(self.root, self.boxes)
            self._found = with_classes(found, self.class_choice, self.derived)
        return self._found

    def _detection(
        self, name: str, annotations: CocoAnnotations, teachers: TeacherBoxes | None = None
    ) -> CocoDetection:
        images = self.split(name).images
        return CocoDetection(
            annotations, images, self.cache, self.tolerate_broken, teachers, self.pixels
        )

    def _supervising(self, train: CocoAnnotations) -> CocoAnnotations:
        """``train`` without the boxes that ``ground_truth`` drops."""
        dropped = ~self.ground_truth.boxes(train)
        count = int((dropped & train.usable).sum())
        if count:
            rank_zero_only(log.info)(
                "data.ground_truth drops %d of %d boxes", count, int(train.usable.sum())
            )
        return replace(train, dropped=dropped)

    def _images(self, train: CocoAnnotations) -> Tensor:
        """(I,) indices of the images of ``train`` that ``ground_truth`` keeps."""
        images = self.ground_truth.images(train).nonzero().flatten()
        if not len(images):
            raise UserError(
                f"data.ground_truth={type(self.ground_truth).__name__} keeps no image of "
                f"{train.path} to train on: give larger ones, or choose another filter"
            )
        if len(images) < len(train):
            rank_zero_only(log.info)(
                "data.ground_truth drops %d of %d images", len(train) - len(images), len(train)
            )
        return images

    def _rank(self) -> tuple[int, int]:
        """The rank of this process, and the number of processes that share the data."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _loading(self) -> dict[str, Any]:
        """What both loaders have in common."""
        return {
            "num_workers": self.num_workers,
            "collate_fn": self.collate,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.num_workers > 0,
            # for the seeds of workers, else drawn from the generator of the training
            "generator": torch.Generator().manual_seed(self.seed),
        }


@rank_zero_only
def _warn(message: str) -> None:
    log.warning(message)
