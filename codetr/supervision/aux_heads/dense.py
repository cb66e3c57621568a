"""A head that predicts at every cell of every level, and what such heads have in common.

Official parameter names (mmdet) and ours: ``cls_convs.i.{conv,gn}`` are
``cls_tower.i.{conv,norm}``, ``reg_convs`` likewise; ``scales.l.scale`` is ``scales.l``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from codetr.boxes import clip_xyxy, paired_giou
from codetr.loss_terms import Losses
from codetr.structures import Batch, Candidates, Detections, Images, Pyramid
from codetr.supervision.aux_heads import AuxOutput
from codetr.supervision.aux_heads.anchors import Anchors, DeltaCoder, Priors
from codetr.supervision.aux_heads.layers import (
    conv_tower,
    flatten_level,
    init_convs,
    predictor,
)
from codetr.supervision.aux_heads.matched import (
    DenseTargets,
    candidates,
    dense_targets,
    true_boxes,
)
from codetr.supervision.aux_heads.selection import Selection
from codetr.supervision.criteria.focal import focal_loss_of_labels
from codetr.tensor_struct import TensorStruct

PRIOR_LOGIT = -math.log(99)
"""Classifier bias that starts every class at probability 0.01 (Lin et al. 2017, section 3.3)."""


@dataclass(frozen=True, kw_only=True)
class DensePredictions(TensorStruct):
    """Outputs of the branches for all A anchors (or points) of all levels; at least float32.

    ``logits`` (B, A, K); ``regression`` (B, A, R), in the parametrisation of the head: offsets,
    distances in pixels, or bins; ``quality`` (B, A) logits of a branch that predicts the quality
    of the box, None without one.
    """

    logits: Tensor
    regression: Tensor
    quality: Tensor | None = None


def join_levels(levels: Iterable[DensePredictions]) -> DensePredictions:
    """Concatenate the predictions of all levels."""
    levels = list(levels)
    quality = [level.quality for level in levels if level.quality is not None]
    return DensePredictions(
        logits=torch.cat([level.logits for level in levels], dim=1),
        regression=torch.cat([level.regression for level in levels], dim=1),
        quality=torch.cat(quality, dim=1) if quality else None,
    )


AnyPriors = TypeVar("AnyPriors", bound=Priors)


class DenseBranches(nn.Module, ABC, Generic[AnyPriors]):
    """Two towers that all levels share, and behind them a classifier and a regression of
    ``regression_size`` numbers for each of the ``per_cell`` priors that ``grid`` puts on a cell.

    A head adds decoding, assignment and losses, and optionally a branch for ``quality``; its
    constructor ends with ``finish_init``. ``channels`` of the maps: a multiple of 32 where the
    towers are ``normalised``. This is a base class and not a part of the head, so that parameters
    keep the names and the order that checkpoints and optimiser states contain.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        num_convs: int,
        grid: Callable[[Pyramid, Tensor], AnyPriors],
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

    def finish_init(self, num_levels: int | None = None) -> None:
        """The end of every constructor: one learned factor of the regression for each of
        ``num_levels`` (None: no factors), and the initial values of all convolutions.
        """
        if num_levels is not None:
            self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(num_levels))
        init_convs(self)
        assert self.cls.bias is not None
        nn.init.constant_(self.cls.bias, PRIOR_LOGIT)

    @abstractmethod
    def decode(self, priors: AnyPriors, regression: Tensor) -> Tensor:
        """(B, A, 4) xyxy px boxes from ``regression`` (B, A, R), not clipped."""

    @abstractmethod
    def assign_image(self, priors: AnyPriors, boxes_px: Tensor, usable: Tensor) -> Tensor:
        """(A,) index into the true ``boxes_px`` (N, 4) xyxy for every prior of an image, or
        ``NEGATIVE`` or ``IGNORED``; only ``usable`` (A,) priors can be positive.
        """

    @abstractmethod
    def losses(
        self, predictions: DensePredictions, priors: AnyPriors, wanted: DenseTargets
    ) -> Losses:
        """Each term is summed over levels and images before it is divided (no loss per level)."""

    def quality(self, classification: Tensor, regression: Tensor) -> Tensor | None:
        """(B, 1, H, W) logits of the quality branch, from the features (B, C, H, W) of both towers;
        None without such a branch.
        """
        return None

    def forward(self, pyramid: Pyramid, batch: Batch) -> AuxOutput:
        """Losses, and the candidates."""
        priors = self.grid(pyramid, batch.images.padded_sizes)
        predictions = self.predictions(pyramid)
        with torch.no_grad():
            assigned = self.assign(predictions, priors, batch)
        wanted = self.targets(assigned, priors, batch)
        return AuxOutput(
            losses=self.losses(predictions, priors, wanted),
            candidates=self.candidates(pyramid, priors, wanted, batch),
        )

    def assign(self, predictions: DensePredictions, priors: AnyPriors, batch: Batch) -> Tensor:
        """(B, A) ``assign_image`` of every image. ``predictions`` are for heads whose assignment
        depends on them.
        """
        images = zip(true_boxes(batch.targets), priors.usable, strict=True)
        return torch.stack([self.assign_image(priors, *image) for image in images])

    def predictions(self, pyramid: Pyramid) -> DensePredictions:
        """Run the branches on all levels."""
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

    def targets(self, assigned: Tensor, priors: AnyPriors, batch: Batch) -> DenseTargets:
        """The targets under the assignment (B, A)."""
        return dense_targets(assigned, batch.targets, priors.boxes, self.num_classes)

    def candidates(
        self, pyramid: Pyramid, priors: AnyPriors, wanted: DenseTargets, batch: Batch
    ) -> tuple[Candidates, ...]:
        """All priors, one per cell; unusable ones are background with zero coordinates, as in
        Co-DETR.
        """
        features = pyramid.tokens()
        return tuple(
            candidates(priors.boxes * usable[:, None], *image)
            for usable, *image in zip(
                priors.usable, wanted.matched, features, batch.targets, strict=True
            )
        )

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[Detections, ...]:
        """Detections per image, clipped to it, ranked by class probability and quality. Priors in
        the padding of an image are included, as in mmdet.
        """
        priors = self.grid(pyramid, images.padded_sizes)
        predictions = self.predictions(pyramid)
        boxes = self.decode(priors, predictions.regression)
        scores = predictions.logits.sigmoid()
        quality = None if predictions.quality is None else predictions.quality.sigmoid()
        return tuple(
            self.selection(
                scores[image],
                clip_xyxy(boxes[image], size.flip(0)),
                priors.level_sizes,
                None if quality is None else quality[image],
            )
            for image, size in enumerate(images.sizes)
        )


def focal_and_giou_losses(
    logits: Tensor, boxes: Tensor, wanted: DenseTargets
) -> tuple[Tensor, Tensor]:
    """(B, A) focal loss, summed over classes, and 1 - GIoU of every anchor, neither masked nor
    weighted; ``logits`` (B, A, K), decoded ``boxes`` (B, A, 4) xyxy px.
    """
    focal = focal_loss_of_labels(logits, wanted.labels).sum(dim=2)
    return focal, 1 - paired_giou(boxes, wanted.boxes_px)


class AnchorBranches(DenseBranches[Anchors]):
    """Branches that regress offsets from anchors, which the head's ``coder`` decodes."""

    coder: DeltaCoder

    def decode(self, priors: Anchors, regression: Tensor) -> Tensor:
        """See ``DenseBranches``."""
        return self.coder.decode(priors.boxes, regression)
