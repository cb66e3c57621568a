"""Pictures of a run: augmented training images, and detections in validation images."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torchvision.transforms.v2.functional import resize, to_pil_image

from codetr.boxes import cxcywh_to_xyxy
from codetr.checkpoints.files import RunRecord
from codetr.classes import ClassList
from codetr.data.images import ImageError, PixelRules, read_image
from codetr.data.resize import resize_nearest
from codetr.evaluation import CocoEvaluator
from codetr.evaluation.encoding import decode
from codetr.evaluation.ground_truth import ImageTruth
from codetr.inference.draw import (
    denormalise,
    draw_boxes,
    grid,
    save_png,
    side_by_side,
    tinted,
)
from codetr.structures import Batch, Detections, ImageInfo, Targets

log = logging.getLogger(__name__)

_DECODED = PixelRules(max_megapixels=math.inf)
"""For files that have been decoded before, whose size is known to be allowed."""

MOST_CLASSES = 126
"""Maximum number of classes of a mask in W&B, besides the background."""

LONGEST_SIDE = 640
"""Larger images are reduced to this side, so that the size of a panel is a few megabytes."""


def _reduced(image: Tensor, boxes_xyxy_px: Tensor) -> tuple[Tensor, Tensor]:
    """Image and boxes, scaled so that the longer side is at most ``LONGEST_SIDE``."""
    height, width = image.shape[-2:]
    factor = min(1.0, LONGEST_SIDE / max(height, width))
    if factor == 1.0:
        return image, boxes_xyxy_px
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    return resize(image, size, antialias=True), boxes_xyxy_px * factor


def _with_targets(image: Tensor, targets: Targets, names: Sequence[str]) -> Tensor:
    """The image with its true boxes, which are relative to ``targets.size``, and masks."""
    boxes = cxcywh_to_xyxy(targets.boxes.cpu()) * targets.size_whwh.cpu()
    height, width = image.shape[-2:]
    image, boxes = _reduced(image, boxes)
    masks = targets.masks
    if masks is not None:
        masks = resize_nearest(masks.cpu()[:, :height, :width], _size(image)) > 0
    return draw_boxes(image, boxes, targets.labels.cpu(), names, masks=masks)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def batch_pictures(
    batch: Batch, names: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> list[Tensor]:
    """The network's input images of a batch with their boxes, each uint8 (3, H, W).

    ``mean`` and ``std`` are those of the normalisation, for RGB values from 0 to 255.
    """
    pictures = []
    for pixels, size, targets in zip(
        batch.images.pixels, batch.images.sizes.tolist(), batch.targets, strict=True
    ):
        valid = pixels[:, : size[0], : size[1]].float().cpu()
        image = denormalise(valid, mean, std)
        pictures.append(_with_targets(image, targets, names))
    return pictures


@dataclass(frozen=True, kw_only=True)
class ObjectMasks:
    """Masks of the objects in an image: ``bitmaps`` (n, H, W) bool, ``labels`` (n,)."""

    bitmaps: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An image, with sides of at most ``LONGEST_SIDE``, with predicted and true boxes, xyxy in its
    pixels.

    ``names``: class names for the labels of both. ``masks``: those of the true objects, if masks
    are evaluated.
    """

    image: Tensor
    predicted: Detections
    true_boxes: Tensor
    true_labels: Tensor
    names: Sequence[str]
    masks: ObjectMasks | None = None

    def picture(self) -> Tensor:
        """The predicted boxes (left) and the true boxes (right), each with their masks."""
        found = self.predicted
        left = draw_boxes(
            self.image,
            found.boxes_xyxy_px,
            found.labels,
            self.names,
            found.scores,
            masks=None if found.cells is None else found.bitmaps(_size(self.image)),
        )
        image, true = self.image, self.masks
        if true is not None:
            image = tinted(image, true.bitmaps, true.labels.tolist(), range(len(true.labels)))
        right = draw_boxes(image, self.true_boxes, self.true_labels, self.names)
        return side_by_side(left, right, ("predicted", "true"))

    def layers(self) -> dict[str, Any]:
        """The boxes in the format of ``wandb.Image``, which can show and hide them."""
        labels = dict(enumerate(self.names))
        found = self.predicted
        rows = zip(
            found.boxes_xyxy_px.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
        )
        predicted = [
            _layer_box(box, label, f"{labels[label]} {score:.2f}") | {"scores": {"score": score}}
            for box, label, score in rows
        ]
        pairs = zip(self.true_boxes.tolist(), self.true_labels.tolist(), strict=True)
        true = [_layer_box(box, label, labels[label]) for box, label in pairs]
        return {
            "predicted": {"box_data": predicted, "class_labels": labels},
            "true": {"box_data": true, "class_labels": labels},
        }

    def mask_layers(self) -> dict[str, Any]:
        """The masks in the format of ``wandb.Image``: for every pixel the class, from 1, of the
        best mask that contains it; empty if there are no masks.

        W&B stores a signed byte per pixel: with more classes, those in the picture are numbered.
        """
        layers = {"true": self.masks}
        if self.predicted.cells is not None:
            bitmaps = self.predicted.bitmaps(_size(self.image))
            layers["predicted"] = ObjectMasks(bitmaps=bitmaps, labels=self.predicted.labels)
        shown = {name: layer for name, layer in layers.items() if layer is not None}
        numbers: Sequence[int] = range(len(self.names))
        if len(numbers) > MOST_CLASSES:
            seen = [one.labels.tolist() for one in shown.values()]
            numbers = sorted(set(chain.from_iterable(seen)))[:MOST_CLASSES]
        return {name: self._layer(layer, numbers) for name, layer in shown.items()}

    def _layer(self, objects: ObjectMasks, numbers: Sequence[int]) -> dict[str, Any]:
        """The layer of some objects; a label is encoded by its index in ``numbers``, from 1."""
        place = {label: i for i, label in enumerate(numbers, start=1)}
        classes = torch.zeros(_size(self.image), dtype=torch.int64)
        pairs = zip(objects.bitmaps.flip(0), objects.labels.flip(0).tolist(), strict=True)
        for bitmap, label in pairs:
            classes[bitmap] = place.get(label, 0)
        labels = {0: "background", **{i: self.names[label] for label, i in place.items()}}
        return {"mask_data": classes.numpy(), "class_labels": labels}


def _layer_box(box: Sequence[float], label: int, caption: str) -> dict[str, Any]:
    position = dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True))
    return {
        "position": position, "domain": "pixel", "class_id": label, "box_caption": caption,
    }  # fmt: skip


def compare(
    info: ImageInfo,
    found: Detections,
    targets: Targets,
    names: Sequence[str],
    min_score: float,
    truth: ImageTruth | None = None,
) -> Comparison:
    """The image with the detections above ``min_score`` and the true boxes, and with the masks of
    ``truth``, if any.

    Raises ImageError if the file cannot be read.
    """
    image = read_image(Path(info.path), _DECODED)
    shown = found.above(min_score).to("cpu", torch.float32)
    reduced, boxes = _reduced(image, shown.boxes_xyxy_px)
    original_whwh = targets.size_whwh.cpu() / torch.tensor(info.scale).repeat(2)
    _, true = _reduced(image, cxcywh_to_xyxy(targets.boxes.cpu()) * original_whwh)
    return Comparison(
        image=reduced,
        predicted=replace(shown, boxes_xyxy_px=boxes),
        true_boxes=true,
        true_labels=targets.labels.cpu(),
        names=names,
        masks=_object_masks(truth, info.original_size, _size(reduced)),
    )


def _object_masks(
    truth: ImageTruth | None, original: tuple[int, int], size: tuple[int, int]
) -> ObjectMasks | None:
    """The masks of ``truth``, without crowd regions, resized from the ``original`` size of the
    image to ``size``; None if there are none.
    """
    if truth is None or truth.masks is None:
        return None
    single = [i for i, crowd in enumerate(truth.crowd.tolist()) if not crowd]
    bitmaps = torch.zeros(len(single), *size, dtype=torch.bool)
    for bitmap, i in zip(bitmaps, single, strict=True):  # one at a time: the image may be large
        whole = decode([truth.masks[i]], original).to(torch.uint8)
        bitmap.copy_(resize_nearest(whole, size)[0] > 0)
    return ObjectMasks(bitmaps=bitmaps, labels=truth.labels[single])


def true_objects(module: Any) -> Mapping[int, ImageTruth]:
    """The true objects of the evaluator of ``module``, by image id."""
    evaluator = module.evaluator
    return evaluator.truth if isinstance(evaluator, CocoEvaluator) else {}


def relabelled(targets: Targets, own: ClassList, other: ClassList) -> Targets:
    """Targets with labels mapped from the class list ``own`` to ``other``, which has all of its
    category ids.
    """
    index = other.index()
    labels = torch.tensor([index[category] for category in own.category_ids])
    return replace(targets, labels=labels[targets.labels.cpu()])


def publish(trainer: Trainer, name: str, picture: Tensor, path: Path) -> None:
    """Write a PNG, and log it to W&B if it is among the loggers."""
    save_png(path, picture)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key=name, images=[str(path)])


class TrainingPreview(Callback):
    """``<folder>/training.png``: the first augmented training images with their boxes."""

    def __init__(self, folder: str | Path, images: int = 16, columns: int = 4) -> None:
        self.path = Path(folder) / "training.png"
        self.images, self.columns = images, columns
        self._pictures: list[Tensor] = []
        self._done = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Collect pictures until there are enough."""
        if self._done or not trainer.is_global_zero:
            return
        record: RunRecord = pl_module.record  # type: ignore[assignment]
        mean, std = record.preprocessing["mean"], record.preprocessing["std"]
        self._pictures += batch_pictures(batch, record.classes.names, mean, std)
        if len(self._pictures) >= self.images:
            self._publish(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the pictures of an epoch with fewer images than requested."""
        if self._pictures and trainer.is_global_zero:
            self._publish(trainer)

    def _publish(self, trainer: Trainer) -> None:
        picture = grid(self._pictures[: self.images], self.columns)
        publish(trainer, "pictures/training", picture, self.path)
        self._pictures, self._done = [], True


class Panel:
    """Combines the first ``images`` into one picture: predictions with a score above ``min_score``
    next to the true boxes. W&B also gets them one by one, with boxes and masks to show or hide.
    """

    def __init__(self, images: int, columns: int, min_score: float) -> None:
        self.images, self.columns, self.min_score = images, columns, min_score
        self._shown: list[Comparison] = []

    def add(
        self,
        batch: Batch,
        outputs: Sequence[Detections],
        model: ClassList,
        data: ClassList,
        truth: Mapping[int, ImageTruth] | None = None,
    ) -> None:
        """Add images of a batch until there are enough. Labels of the outputs refer to the class
        list ``model``, labels of the batch to ``data``; both are drawn with names and colours of
        ``model``. ``truth`` by image id, with labels of ``model``, may have masks.
        """
        for info, found, targets in zip(batch.infos, outputs, batch.targets, strict=True):
            if len(self._shown) == self.images:
                return
            true = relabelled(targets, data, model)
            try:
                known = None if truth is None else truth.get(info.image_id)
                shown = compare(info, found, true, model.names, self.min_score, known)
            except ImageError as error:  # allowed by data.tolerate_broken
                log.warning("%s; it is omitted from the panel", error)
            else:
                self._shown.append(shown)

    def finish(self, trainer: Trainer, name: str, path: Path) -> None:
        """Publish the panel, if it has any picture, and clear it."""
        if self._shown and not trainer.sanity_checking:
            pictures = [shown.picture() for shown in self._shown]
            publish(trainer, f"pictures/{name}", grid(pictures, self.columns), path)
            images = [to_pil_image(shown.image) for shown in self._shown]
            layers = [shown.layers() for shown in self._shown]
            masks = [shown.mask_layers() for shown in self._shown]
            also: dict[str, Any] = {"masks": masks} if all(masks) else {}
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(key=f"boxes/{name}", images=images, boxes=layers, **also)
        self._shown = []


class ValidationPanel(Callback):
    """``<folder>/validation_<epoch>.png`` after every validation: the same images each time, with
    predicted and true boxes. Predictions below ``min_score`` are not drawn.
    """

    def __init__(
        self, folder: str | Path, images: int = 8, columns: int = 2, min_score: float = 0.3
    ) -> None:
        self.folder, self.panel = Path(folder), Panel(images, columns, min_score)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first images."""
        if trainer.is_global_zero:
            record: RunRecord = pl_module.record  # type: ignore[assignment]
            self.panel.add(batch, outputs, record.classes, record.classes, true_objects(pl_module))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put them together."""
        path = self.folder / f"validation_{trainer.current_epoch + 1:03d}.png"
        self.panel.finish(trainer, "validation", path)


class EvaluationPanel(Callback):
    """``path``: the first images of an evaluated split, as ``ValidationPanel`` draws them."""

    def __init__(
        self, path: str | Path, images: int = 8, columns: int = 2, min_score: float = 0.3
    ) -> None:
        self.path, self.panel = Path(path), Panel(images, columns, min_score)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first images."""
        if trainer.is_global_zero:
            classes: ClassList = pl_module.classes  # type: ignore[assignment]
            data: ClassList = trainer.datamodule.classes  # type: ignore[attr-defined]
            self.panel.add(batch, outputs, classes, data, true_objects(pl_module))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put them together."""
        self.panel.finish(trainer, "evaluation", self.path)
