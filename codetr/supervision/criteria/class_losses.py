"""Classification losses of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from codetr.classification import Sigmoid, Softmax
from codetr.loss_terms import Count
from codetr.supervision.criteria.focal import (
    focal_loss_of_labels,
    one_hot_labels,
    quality_focal_loss,
)


class Classification(Protocol):
    """A classification loss: which targets a matched class gets, how they are measured, and what
    their sum is divided by. Groups of queries whose losses are equal are computed as one where they
    are ``per_query``; a loss with tensors must be equal to itself only.
    """

    @property
    def reads(self) -> type:
        """The kind of ``codetr.classification`` whose logits it measures."""
        ...

    @property
    def per_query(self) -> bool:
        """Whether the loss of a query is the same whichever other queries are measured with it."""
        ...

    def __call__(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """Elementwise (L, B, Q, K) of L layers' ``logits`` (L, B, Q, K), ``labels`` (L, B, Q) with
        K = background, and ``quality`` (L, B, Q), the IoU of each matched box, 0 elsewhere. (With
        softmax, the last dimension is K + 1.)
        """
        ...

    def counts(self, matched: Tensor, num_boxes: Count) -> Sequence[Count]:
        """What the sum over each layer is divided by. ``matched`` (L, B, Q) is False for
        background; ``num_boxes`` is what losses of boxes are divided by.
        """
        ...


class _PerBox:
    """Losses that are divided by the number of boxes, as box losses are."""

    reads: ClassVar[type] = Sigmoid
    per_query: ClassVar[bool] = True

    def counts(self, matched: Tensor, num_boxes: Count) -> Sequence[Count]:
        """See ``Classification``."""
        return [num_boxes] * len(matched)


@dataclass(frozen=True)
class FocalClassification(_PerBox):
    """Sigmoid focal loss with hard targets (Deformable DETR, Co-Deformable-DETR)."""

    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """See ``Classification``."""
        return focal_loss_of_labels(logits, labels, self.alpha, self.gamma)


@dataclass(frozen=True)
class QualityClassification(_PerBox):
    """Quality focal loss: a matched class's target is its box's IoU (GFL, Co-DINO)."""

    beta: float = 2.0

    def __call__(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """See ``Classification``."""
        classes = one_hot_labels(labels, logits.shape[-1], logits.dtype)
        return quality_focal_loss(logits, classes * quality[..., None], self.beta)


@dataclass(frozen=True)
class SoftmaxClassification:
    """Cross-entropy, in which background has the weight ``background`` (DETR, section 3.1; YOLOS).

    The sum is divided by the sum of these weights over the queries of this process, not by the
    number of boxes: a mean, as in the official code.
    """

    reads: ClassVar[type] = Softmax
    per_query: ClassVar[bool] = True
    background: float = 0.1

    def __call__(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """See ``Classification``: the last dimension is K + 1; ``quality`` is not used."""
        entropy = -logits.log_softmax(-1) * one_hot_labels(labels, logits.shape[-1], logits.dtype)
        return entropy * self._weights(labels < logits.shape[-1] - 1, logits)[..., None]

    def counts(self, matched: Tensor, num_boxes: Count) -> list[Count]:
        """The sum of weights of every layer."""
        sums = self._weights(matched, num_boxes.number).sum(dim=(1, 2))
        return [Count(number, minimum=0, shared=False) for number in sums.unbind()]

    def _weights(self, matched: Tensor, like: Tensor) -> Tensor:
        """1 where ``matched``, ``background`` elsewhere, in the dtype of ``like``."""
        return matched.to(like.dtype) * (1 - self.background) + self.background
