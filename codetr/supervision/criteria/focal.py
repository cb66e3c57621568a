"""Losses of classifiers, of quality branches and of distributions, element by element.

All are built on the cross-entropy of logits (log-sum-exp inside), so that no logarithm of a
rounded probability is ever taken.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot_labels(labels: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(..., K) one-hot rows of ``labels`` (...) int64; label K = ``num_classes`` (background)
    gives a row of zeros.
    """
    classes = torch.arange(num_classes, device=labels.device)
    return (labels[..., None] == classes).to(dtype)


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss (Lin et al. 2017, eq. 5), same shape as ``logits``.

    ``targets`` are 0 or 1 in the dtype of ``logits``.
    """
    probability = logits.sigmoid()
    missed = targets * (1 - probability) + (1 - targets) * probability
    balance = targets * alpha + (1 - targets) * (1 - alpha)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return balance * missed.pow(gamma) * entropy


def focal_loss_of_labels(
    logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """The focal loss (..., K) of ``logits`` (..., K) for ``labels`` (...) int64, K = background."""
    targets = one_hot_labels(labels, logits.shape[-1], logits.dtype)
    return sigmoid_focal_loss(logits, targets, alpha, gamma)


def quality_focal_loss(logits: Tensor, soft_targets: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss (Li et al. 2020, eq. 3), same shape as ``logits``.

    ``soft_targets`` in [0, 1], dtype of ``logits``: the overlap of the predicted box with its
    target at the matched class, 0 everywhere else.
    """
    distance = (soft_targets - logits.sigmoid()).abs()
    entropy = F.binary_cross_entropy_with_logits(logits, soft_targets, reduction="none")
    return distance.pow(beta) * entropy


def quality_entropy(logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
    """Binary cross-entropy (...) of a branch that predicts the ``quality`` (...) of boxes, their
    centerness or IoU in [0, 1], by its ``logits`` (...); 0 where not ``positive`` (...).
    """
    entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return entropy * positive


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Distribution focal loss (Li et al. 2020, eq. 6), the shape (...) of ``targets``.

    Cross-entropy of the distribution of ``logits`` (..., n + 1) over the integers 0 to n with the
    two neighbours of each target, by nearness; ``targets`` in [0, n).
    """
    below = targets.floor()
    index = below.long()[..., None]
    entropy = -logits.log_softmax(dim=-1)
    left, right = entropy.gather(-1, index), entropy.gather(-1, index + 1)
    share = targets - below
    return left.squeeze(-1) * (1 - share) + right.squeeze(-1) * share
