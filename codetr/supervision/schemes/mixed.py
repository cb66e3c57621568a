"""Mixed supervision (MS-DETR, arXiv 2401.03989): one-to-many on the primary queries themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from codetr.models.detectors.protocol import MAIN
from codetr.models.layers import FeedForward
from codetr.structures import CROSS_ATTENTION, Batch, Decoded, Predictions
from codetr.supervision.assigners.top_k import TopKAssigner, with_best_target
from codetr.supervision.criteria import SetCriterion, by_layer, supervised
from codetr.supervision.schemes.protocol import Scheme
from codetr.supervision.schemes.scoring import Score, measured


class Branch(nn.Module):
    """A feed-forward block with its norm, beside a decoder layer's own: (B, Q, C) to (B, Q, C)."""

    def __init__(self, dim: int = 256, hidden: int = 2048, dropout: float = 0.0) -> None:
        super().__init__()
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.feed_forward.expand.weight)
        nn.init.xavier_uniform_(self.feed_forward.contract.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """What the layer's heads are to read."""
        return self.norm(self.feed_forward(hidden))


class Mixed(Scheme):
    """One-to-many supervision of every decoder layer's features after cross-attention.

    They are read by the layer's own class and box heads, after a branch of this scheme: the
    detector is the same with and without it. ``CrossFirstDecoderLayer`` is the decoder layer that
    it was published with; others have the tap too.

    Args:
        assigner: several queries per target.
        criterion: measures them. Its sums are divided by the number of targets, not of pairs.
        branch: builds the branch of one decoder layer.
        num_layers: of the decoder.
    """

    def __init__(
        self,
        assigner: TopKAssigner,
        criterion: SetCriterion,
        branch: Callable[[], Branch],
        num_layers: int = 6,
    ) -> None:
        super().__init__()
        self.assigner, self.criterion = assigner, criterion
        self.branches = nn.ModuleList(branch() for _ in range(num_layers))
        self.taps = {CROSS_ATTENTION: num_layers}

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Score:
        """``layer{i}/...``. Boxes count once per pair; a query has one class, that of its best
        target.
        """
        layers = self.predictions(decoded[MAIN])
        pairs = self.assigner(layers, batch.targets)
        single = [with_best_target(own, *layers[0].boxes.shape[:2]) for own in pairs]
        number = batch.mean_over_step(lambda counts: sum(counts.targets))
        classes, boxes = yield from measured(
            *(
                supervised(self.criterion, layers, batch.targets, assignments, pairs=number)
                for assignments in (single, pairs)
            )
        )
        return by_layer(boxes) | {
            name: term for name, term in by_layer(classes).items() if name.endswith("/cls")
        }

    def predictions(self, main: Decoded) -> tuple[Predictions, ...]:
        """One-to-many predictions (B, Q, ...) of every layer."""
        return tuple(
            tap.read(branch(tap.hidden), tap.anchors)
            for branch, tap in zip(self.branches, main.taps[CROSS_ATTENTION], strict=True)
        )
