"""What class logits mean: a value that travels with them, so that nobody has to guess it from their
number.
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
        """Number of logits for K classes. Raises UserError where K is not what it is made for."""
        ...

    def num_classes(self, logits: Tensor) -> int:
        """K, of ``logits`` (..., width)."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """(..., K) in [0, 1], the probability of every class, of ``logits`` (..., width)."""
        ...

    def detection_scores(self, logits: Tensor) -> Tensor:
        """(..., K) ``scores`` of what may become detections, 0 for what may not."""
        ...

    def most_detections(self, logits: Tensor) -> int:
        """How many there may be of an image with ``logits`` (..., Q, width)."""
        ...


@dataclass(frozen=True)
class Sigmoid:
    """Every class by itself: K logits. Background is where all of them are low (focal loss)."""

    def width(self, num_classes: int) -> int:
        """K."""
        return num_classes

    def num_classes(self, logits: Tensor) -> int:
        """K, the number of ``logits``."""
        return logits.shape[-1]

    def scores(self, logits: Tensor) -> Tensor:
        """(..., K) of ``logits`` (..., K)."""
        return logits.sigmoid()

    def detection_scores(self, logits: Tensor) -> Tensor:
        """All of them: a query may detect several classes."""
        return self.scores(logits)

    def most_detections(self, logits: Tensor) -> int:
        """One of every query and class."""
        return logits.shape[-2] * logits.shape[-1]


@dataclass(frozen=True)
class Softmax:
    """One class or none: K + 1 logits, the last of which, at index ``background`` K, is that of
    background (DETR, YOLOS).
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
        """K, whatever ``logits``."""
        return self.background

    def scores(self, logits: Tensor) -> Tensor:
        """(..., K) of ``logits`` (..., K + 1)."""
        return logits.softmax(-1)[..., : self.background]

    def detection_scores(self, logits: Tensor) -> Tensor:
        """Those of the best class of every query, which detects one object."""
        scores = self.scores(logits)
        classes = torch.arange(self.background, device=logits.device)
        return scores.where(scores.argmax(-1, keepdim=True) == classes, 0.0)

    def most_detections(self, logits: Tensor) -> int:
        """One of every query."""
        return logits.shape[-2]


SIGMOID = Sigmoid()
