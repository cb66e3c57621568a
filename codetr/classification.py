"""The meaning of class logits, as a value that accompanies them, so that no code infers it from
their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from codetr.errors import UserError


class Classification(Protocol):
    """How many logits there are for K classes, and how they become scores."""

    def width(self, num_classes: int) -> int:
        """Number of logits for K classes. Raises UserError if this K is not supported."""
        ...

    def num_classes(self, logits: Tensor) -> int:
        """K, from ``logits`` (..., width)."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """Class probabilities (..., K) from ``logits`` (..., width)."""
        ...

    def detection_scores(self, logits: Tensor) -> Tensor:
        """``scores`` (..., K), set to 0 for pairs of query and class that cannot be detections."""
        ...

    def most_detections(self, logits: Tensor) -> int:
        """The largest number of detections of an image with ``logits`` (..., Q, width)."""
        ...


@dataclass(frozen=True)
class Sigmoid:
    """K independent logits; background is where all are low (focal loss)."""

    def width(self, num_classes: int) -> int:
        """K."""
        return num_classes

    def num_classes(self, logits: Tensor) -> int:
        """K, the number of ``logits``."""
        return logits.shape[-1]

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities (..., K) from ``logits`` (..., K)."""
        return logits.sigmoid()

    def detection_scores(self, logits: Tensor) -> Tensor:
        """All scores: a query may detect several classes."""
        return self.scores(logits)

    def most_detections(self, logits: Tensor) -> int:
        """One per query and class."""
        return logits.shape[-2] * logits.shape[-1]


@dataclass(frozen=True)
class Softmax:
    """K + 1 logits of exclusive classes, the last one, at index ``background`` = K, for background
    (DETR, YOLOS).
    """

    background: int

    def width(self, num_classes: int) -> int:
        """K + 1."""
        if num_classes != self.background:
            raise UserError(
                f"softmax over {num_classes} classes has its background at index {num_classes}, "
                f"not {self.background}: give Softmax the number of classes"
            )
        return num_classes + 1

    def num_classes(self, logits: Tensor) -> int:
        """K."""
        return self.background

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities (..., K) from ``logits`` (..., K + 1), without background."""
        return logits.softmax(-1)[..., : self.background]

    def detection_scores(self, logits: Tensor) -> Tensor:
        """The score of the best class of each query, which detects one object."""
        scores = self.scores(logits)
        classes = torch.arange(self.background, device=logits.device)
        return scores.where(scores.argmax(-1, keepdim=True) == classes, 0.0)

    def most_detections(self, logits: Tensor) -> int:
        """One per query."""
        return logits.shape[-2]


SIGMOID = Sigmoid()
