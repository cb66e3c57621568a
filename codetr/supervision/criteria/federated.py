"""Federated loss, for data sets that annotate only some classes per image (LVIS)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codetr.classification import Sigmoid
from codetr.loss_terms import Count
from codetr.supervision.criteria.class_losses import Classification


class FederatedClassification(nn.Module):
    """A classification loss restricted to the classes of the batch and some sampled ones.

    Zhou et al., "Probabilistic two-stage detection" (arXiv 2103.07461), section 4: the classes
    with a box in the batch count, and others drawn without replacement until ``num_classes`` are
    together, each with a probability that grows with ``counts`` ** ``power``; ``counts`` (K) are
    the numbers of training images with the class (a class of count 0 is never drawn). All other
    columns of the loss are zero. Classes are drawn for every group of queries and decoder layer.
    """

    weights: Tensor
    per_query = False

    def __init__(
        self,
        inner: Classification,
        counts: Sequence[int],
        num_classes: int = 50,
        power: float = 0.5,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"federated loss on {num_classes} classes: give num_classes >= 1")
        if inner.reads is not Sigmoid:
            raise ValueError(f"federated loss of {inner}: a softmax cannot leave classes out")
        self.inner, self.num_classes = inner, num_classes
        weights = torch.tensor(list(counts), dtype=torch.float32).pow(power)
        weights[torch.tensor(list(counts)) == 0] = 0
        self.register_buffer("weights", weights, persistent=False)

    @property
    def reads(self) -> type:
        """As the inner loss."""
        return self.inner.reads

    def counts(self, matched: Tensor, num_boxes: Count) -> Sequence[Count]:
        """As the inner loss."""
        return self.inner.counts(matched, num_boxes)

    def forward(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """See ``Classification``."""
        judged = self.judged(labels, logits.shape[-1])[..., None, None, :]
        return self.inner(logits, labels, quality) * judged.to(logits.dtype)

    def judged(self, labels: Tensor, num_classes: int) -> Tensor:
        """(..., K) bool: the classes that count for ``labels`` (..., B, Q), K = background."""
        layers = labels.shape[:-2]
        present = torch.zeros(*layers, num_classes + 1, dtype=torch.bool, device=labels.device)
        present = present.scatter(-1, labels.flatten(-2), True)[..., :-1]
        # Drawing without replacement is a top-k of log-weights with Gumbel noise; present classes
        # come first, classes of weight 0 last.
        noise = -self.weights.new_empty(*layers, num_classes).exponential_().log()
        order = (self.weights.log() + noise).masked_fill(present, torch.inf)
        best = order.topk(min(self.num_classes, num_classes))
        drawn = torch.zeros_like(present).scatter(-1, best.indices, best.values > -torch.inf)
        return present | drawn
