"""A head that predicts at every cell of every level, and what such heads have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from codetr.boxes import at_least_float32, clip_xyxy
from codetr.loss_terms import Losses
from codetr.structures import Batch, Candidates, Detections, Images, Pyramid
from codetr.supervision.aux_heads.anchors import Anchors, Places
from codetr.supervision.aux_heads.coder import DeltaCoder
from codetr.supervision.aux_heads.matched import (
    DenseTargets,
    candidates,
    dense_targets,
    true_boxes,
)
from codetr.supervision.aux_heads.protocol import AuxOutput
from codetr.supervision.aux_heads.selection import Selection
from codetr.tensor_struct import TensorStruct

GROUPS = 32
PRIOR_LOGIT = -math.log(99)
"""Classifier bias that starts every class at probability 0.01 (Lin et al. 2017, section 3.3)."""


@dataclass(frozen=True, kw_only=True)
class DensePredictions(TensorStruct):
    """What the branches say at all A anchors (or points) of all levels; at least float32.

    ``logits`` (B, A, K); ``regression`` (B, A, R), as the head has it: offsets, distances in
    pixels, or bins; ``quality`` (B, A) logits of a branch that judges the box, None without one.
    """

    logits: Tensor
    regression: Tensor
    quality: Tensor | None = None


def join_levels(levels: Iterable[DensePredictions]) -> DensePredictions:
    """Predictions of each level by itself, one after the other."""
    found = list(levels)
    quality = [level.quality for level in found if level.quality is not None]
    return DensePredictions(
        logits=torch.cat([level.logits for level in found], dim=1),
        regression=torch.cat([level.regression for level in found], dim=1),
        quality=torch.cat(quality, dim=1) if quality else None,
    )


class ConvBlock(nn.Module):
    """3x3 convolution, group norm (or a bias where ``normalised`` is false), ReLU."""

    def __init__(self, channels: int, *, normalised: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=not normalised)
        self.norm = nn.GroupNorm(GROUPS, channels) if normalised else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self.norm(self.conv(features)).relu()


def conv_tower(channels: int, depth: int, *, normalised: bool = True) -> nn.Sequential:
    """``depth`` blocks (0: the features as they are), shared by all levels."""
    return nn.Sequential(*(ConvBlock(channels, normalised=normalised) for _ in range(depth)))


def predictor(channels: int, outputs: int) -> nn.Conv2d:
    """The last 3x3 convolution of a branch."""
    return nn.Conv2d(channels, outputs, 3, padding=1)


def level_scales(num_levels: int) -> nn.ParameterList:
    """One learned factor per level, shape (), starting at 1."""
    return nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(num_levels))


def init_convs(head: nn.Module, std: float = 0.01) -> None:
    """Every convolution of ``head``: weights N(0, std), biases 0."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_dense(head: nn.Module, classifier: nn.Conv2d) -> None:
    """Every convolution of ``head``, and the prior of its ``classifier``."""
    init_convs(head)
    nn.init.constant_(classifier.bias, PRIOR_LOGIT)  # type: ignore[arg-type]


def flatten_level(prediction: Tensor, size: int) -> Tensor:
    """(B, anchors * size, H, W) to (B, H * W * anchors, size), in the order of ``Anchors``; at
    least float32.
    """
    return at_least_float32(prediction.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, size)))


def cell_features(pyramid: Pyramid) -> Tensor:
    """(B, cells, C) the maps' vectors, level by level, row by row; keeps the gradient."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in pyramid.maps], dim=1)


AnyPlaces = TypeVar("AnyPlaces", bound=Places)


class DenseBranches(nn.Module, ABC, Generic[AnyPlaces]):
    """Two towers that all levels share, and behind them a classifier and a regression of
    ``regression_size`` numbers for each of the ``per_cell`` places that ``grid`` puts on a cell.

    Such a head adds what is its own: how it decodes, assigns and measures; ``scales``, one learned
    factor per level of the regression; a branch for ``quality``. Its constructor ends with
    ``init_dense``. ``channels`` of the maps: a multiple of 32 where the towers are ``normalised``.
    It is a base class and no part of a head, so that parameters have the names and the order that
    checkpoints and optimiser states know them by.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        num_convs: int,
        grid: Callable[[Pyramid, Tensor], AnyPlaces],
        selection: Selection,
        *,
        per_cell: int = 1,
        regression_size: int = 4,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.per_cell = num_classes, per_cell
        self.regression_size = regression_size
        self.grid, self.selection = grid, selection
        self.cls_tower = conv_tower(channels, num_convs, normalised=normalised)
        self.reg_tower = conv_tower(channels, num_convs, normalised=normalised)
        self.cls = predictor(channels, per_cell * num_classes)
        self.reg = predictor(channels, per_cell * regression_size)
        self.scales: nn.ParameterList | None = None

    @abstractmethod
    def decode(self, places: AnyPlaces, regression: Tensor) -> Tensor:
        """(B, A, 4) xyxy px boxes that ``regression`` (B, A, R) stands for, not clipped."""

    @abstractmethod
    def assign_image(self, places: AnyPlaces, boxes_px: Tensor, usable: Tensor) -> Tensor:
        """(A,) index into the true ``boxes_px`` (N, 4) xyxy for every place of an image, of which
        those that are ``usable`` (A,) count; ``NEGATIVE`` or ``IGNORED``.
        """

    @abstractmethod
    def losses(
        self, predictions: DensePredictions, places: AnyPlaces, wanted: DenseTargets
    ) -> Losses:
        """Each term is summed over levels and images before it is divided (no loss per level)."""

    def quality(self, classification: Tensor, regression: Tensor) -> Tensor | None:
        """(B, 1, H, W) logits of a branch that judges boxes, from the features (B, C, H, W) of both
        towers; None without such a branch.
        """
        return None

    def forward(self, pyramid: Pyramid, batch: Batch) -> AuxOutput:
        """Losses, and the candidates."""
        places = self.grid(pyramid, batch.images.padded_sizes)
        predictions = self.predictions(pyramid)
        wanted = self.targets(self.assign(predictions, places, batch), places, batch)
        return AuxOutput(
            losses=self.losses(predictions, places, wanted),
            candidates=self.candidates(pyramid, places, wanted, batch),
        )

    def assign(self, predictions: DensePredictions, places: AnyPlaces, batch: Batch) -> Tensor:
        """(B, A) ``assign_image`` of every image; predictions have no say in it."""
        images = zip(true_boxes(batch.targets), places.usable, strict=True)
        return torch.stack([self.assign_image(places, *image) for image in images])

    def predictions(self, pyramid: Pyramid) -> DensePredictions:
        """What the branches say at all places of all levels."""
        levels = [self._level(features) for features in pyramid.maps]
        if self.scales is not None:
            levels = [
                replace(level, regression=level.regression * scale)
                for level, scale in zip(levels, self.scales, strict=True)
            ]
        return join_levels(levels)

    def _level(self, features: Tensor) -> DensePredictions:
        classification, regression = self.cls_tower(features), self.reg_tower(features)
        quality = self.quality(classification, regression)
        return DensePredictions(
            logits=flatten_level(self.cls(classification), self.num_classes),
            regression=flatten_level(self.reg(regression), self.regression_size),
            quality=None if quality is None else flatten_level(quality, 1).squeeze(2),
        )

    def targets(self, assigned: Tensor, places: AnyPlaces, batch: Batch) -> DenseTargets:
        """What the assignment (B, A) asks for."""
        return dense_targets(assigned, batch.targets, places.boxes, self.num_classes)

    def candidates(
        self, pyramid: Pyramid, places: AnyPlaces, wanted: DenseTargets, batch: Batch
    ) -> tuple[Candidates, ...]:
        """All places, one per cell. Those that are not usable are background with zero coordinates,
        as in Co-DETR.
        """
        features = cell_features(pyramid)
        return tuple(
            candidates(places.boxes * usable[:, None], *image)
            for usable, *image in zip(
                places.usable, wanted.matched, features, batch.targets, strict=True
            )
        )

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[Detections, ...]:
        """Detections per image, clipped to it, by class probability and quality. Places in an
        image's padding take part, as in mmdet.
        """
        places = self.grid(pyramid, images.padded_sizes)
        predictions = self.predictions(pyramid)
        boxes = self.decode(places, predictions.regression)
        scores = predictions.logits.sigmoid()
        quality = None if predictions.quality is None else predictions.quality.sigmoid()
        return tuple(
            self.selection(
                scores[image],
                clip_xyxy(boxes[image], size.flip(0)),
                places.level_sizes,
                None if quality is None else quality[image],
            )
            for image, size in enumerate(images.sizes)
        )


class AnchorBranches(DenseBranches[Anchors]):
    """Branches whose regression are offsets from anchors, as the head's ``coder`` has them."""

    coder: DeltaCoder

    def decode(self, places: Anchors, regression: Tensor) -> Tensor:
        """See ``DenseBranches``."""
        return self.coder.decode(places.boxes, regression)
