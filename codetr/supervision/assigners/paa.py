"""Probabilistic anchor assignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.supervision.assigners.max_iou import NEGATIVE, MaxIouAssigner
from codetr.supervision.assigners.mixture import MixtureFit
from codetr.supervision.assigners.sampling import best_of_levels
from codetr.tensor_struct import TensorStruct

PROPOSAL = MaxIouAssigner(positive=0.1, negative=0.1, low_quality=0.0)
MIXTURE = MixtureFit()


@dataclass(frozen=True, kw_only=True)
class Pools(TensorStruct):
    """The candidates of N boxes: ``anchors`` (M, N) indices and ``losses`` (M, N), ascending,
    infinite where a box has fewer than M.
    """

    anchors: Tensor
    losses: Tensor


@dataclass(frozen=True, kw_only=True)
class PaaAssigner:
    """Probabilistic anchor assignment (Kim and Lee 2020, section 3.1, algorithm 1).

    ``proposal`` first assigns anchors to boxes by IoU. The ``per_level`` anchors of lowest loss on
    each level are then the candidates of their box: a ``mixture`` of two Gaussians is fitted to
    their losses, and the anchors of the lower component are positive, up to the one of highest
    density (figure 3c). All others are background.
    """

    proposal: MaxIouAssigner = PROPOSAL
    per_level: int = 9
    mixture: MixtureFit = MIXTURE

    def __call__(
        self,
        proposed: Tensor,
        losses: Tensor,
        level_sizes: Sequence[int],
        counts: Sequence[int],
    ) -> Tensor:
        """(B, A) index of every anchor's box in its image, ``NEGATIVE`` or ``IGNORED``.

        ``proposed`` (B, A) is the result of ``proposal`` for every image, ``losses`` (B, A) the
        loss of each anchor with that box, ``counts`` the number of boxes of every image.
        """
        pools = [
            self.pools(own, loss, level_sizes, count)
            for own, loss, count in zip(proposed, losses, counts, strict=True)
        ]
        positive = self.split(torch.cat([pool.losses for pool in pools], dim=1))
        kept = positive.split(list(counts), dim=1)
        return torch.stack([_write(*image) for image in zip(proposed, pools, kept, strict=True)])

    def pools(self, proposed: Tensor, losses: Tensor, level_sizes: Sequence[int], n: int) -> Pools:
        """The candidates of the ``n`` boxes of one image."""
        box = torch.arange(n, device=proposed.device)
        cost = torch.where(proposed[:, None] == box, losses[:, None].detach(), torch.inf)
        anchors = best_of_levels(cost, level_sizes, self.per_level, dim=0, largest=False)
        ascending, order = cost.gather(0, anchors).sort(dim=0, stable=True)
        return Pools(anchors=anchors.gather(0, order), losses=ascending)

    def split(self, losses: Tensor) -> Tensor:
        """Which of the candidates' ``losses`` (M, N), see ``Pools``, are positive: none where a box
        has fewer than two.
        """
        valid = losses.isfinite()
        values = losses.double().masked_fill(~valid, 0)
        low, high = self.mixture(losses).log_joint(values)
        lower = (low >= high) & valid & (valid.sum(dim=0) > 1)
        density = torch.logaddexp(low, high).masked_fill(~lower, -torch.inf)
        place = torch.arange(len(losses), device=losses.device)[:, None]
        return lower & (place <= density.argmax(dim=0))


def _write(proposed: Tensor, pool: Pools, positive: Tensor) -> Tensor:
    """The proposal, with all but the ``positive`` (M, N) candidates turned into background."""
    size, count = len(proposed), positive.shape[1]
    # What is not positive is written to one place past the end, which is cut off.
    place = torch.where(positive, pool.anchors, size)
    box = torch.arange(count, device=proposed.device).expand_as(place)
    kept = torch.cat([proposed.clamp(max=NEGATIVE), proposed.new_full((1,), NEGATIVE)])
    return kept.scatter(0, place.flatten(), box.flatten())[:size]
