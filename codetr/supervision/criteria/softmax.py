"""Classification by softmax with a class for background."""

from __future__ import annotations

from torch import Tensor, nn

from codetr.classification import Softmax
from codetr.loss_terms import Count
from codetr.supervision.criteria.focal import one_hot_labels


class SoftmaxClassification(nn.Module):
    """Cross-entropy, in which background counts ``background`` as much as a class (DETR, section
    3.1; YOLOS).

    The sum is divided by the sum of these weights over the queries of this process, not by the
    number of boxes: a mean, as in the official code.
    """

    reads = Softmax

    def __init__(self, background: float = 0.1) -> None:
        super().__init__()
        self.background = background

    def forward(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
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
