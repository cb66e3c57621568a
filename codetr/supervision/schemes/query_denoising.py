"""Query denoising: noisy copies of the ground truth as further queries (DN-DETR, arXiv 2203.01305).

Contrastive denoising (``denoising``) adds negatives to it. Layout of the queries, for n boxes at
most in an image of the batch: ``groups`` times n slots. Image i fills its first n_i slots of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codetr.errors import UserError
from codetr.models.transformers import QueryForm
from codetr.structures import Batch, BoxCounts, Decoded, QueryGroup, Targets
from codetr.supervision.criteria import SetCriterion, by_layer, known
from codetr.supervision.schemes.denoising import noisy_group, padded
from codetr.supervision.schemes.protocol import Proposal, Scheme, Start
from codetr.supervision.schemes.scoring import Score, measured

GROUP = "query_denoising"


@dataclass(frozen=True, kw_only=True)
class QueryNoise:
    """The random numbers of one batch, for B images, G groups, n slots.

    ``flip`` (B, G, n) uniform in [0, 1); ``labels`` (B, G, n) replacement labels; ``shifts``
    (B, G, n, 4) uniform in [0, 1).
    """

    flip: Tensor
    labels: Tensor
    shifts: Tensor


class QueryDenoising(Scheme):
    """Queries made from noisy boxes and labels, whose targets are known without matching.

    Their content is a row of a label table and a last channel of 1 (0 in the detector's own
    queries, see ``UnknownLabel``).

    Args:
        criterion: measures the reconstruction.
        num_classes: rows K of the label table.
        dim: width of queries.
        groups: number of copies of every box.
        label_noise: a label is redrawn with this probability.
        box_noise: the centre moves by up to this share of half the box, the size changes by up to
            this share of it; then all four are clamped to [0, 1].

    Raises UserError for fewer than one group.
    """

    adds_groups = True
    form = QueryForm()

    def __init__(
        self,
        criterion: SetCriterion,
        num_classes: int,
        dim: int = 256,
        groups: int = 5,
        label_noise: float = 0.2,
        box_noise: float = 0.4,
    ) -> None:
        super().__init__()
        if groups < 1:
            raise UserError(f"scheme.query_denoising.groups={groups}: give 1 or more")
        self.criterion = criterion
        self.label_embedding = nn.Embedding(num_classes, dim - 1)
        self.groups = groups
        self.label_noise, self.box_noise = label_noise, box_noise

    def propose(self, start: Start) -> Proposal:
        """One group. Without a box in the batch it is empty, so that processes with and without
        boxes take the same steps.
        """
        targets, like = start.batch.targets, start.memory.valid_ratios
        noise = self.draw(len(targets), max(len(t) for t in targets), like)
        return Proposal(groups=(self.group(targets, noise),))

    def draw(self, images: int, slots: int, like: Tensor) -> QueryNoise:
        """Fresh random numbers on the device of ``like``."""
        shape = (images, self.groups, slots)
        options: dict[str, Any] = {"device": like.device}
        return QueryNoise(
            flip=torch.rand(shape, **options),
            labels=torch.randint(self.label_embedding.num_embeddings, shape, **options),
            shifts=torch.rand((*shape, 4), **options, dtype=like.dtype),
        )

    def group(self, targets: Sequence[Targets], noise: QueryNoise) -> QueryGroup:
        """The query group for the targets of a batch under the given noise. Slots without a box
        hold a content of zeros and a box in the middle; the others of their group see them.
        """
        used, labels, boxes = padded(targets, noise.flip.shape[-1])
        labels = torch.where(noise.flip < self.label_noise, noise.labels, labels[:, None])
        boxes = self._shifted(boxes.to(noise.shifts.dtype)[:, None], noise)
        content = nn.functional.pad(self.label_embedding(labels), (0, 1), value=1.0)
        return noisy_group(GROUP, targets, content, boxes, used[:, None])

    def _shifted(self, boxes: Tensor, noise: QueryNoise) -> Tensor:
        """(B, G, n, 4) boxes with other centres and sizes."""
        width_height = boxes[..., 2:]
        reach = torch.cat([width_height / 2, width_height], dim=-1) * self.box_noise
        return (boxes + (2 * noise.shifts - 1) * reach).clamp(0, 1)

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Score:
        """``layer{i}/...``; slots without a box count nothing."""
        pairs = batch.mean_over_step(self._pairs)
        # The only slots without a target are those without a box.
        group = known(self.criterion, decoded[GROUP], background=0.0, pairs=pairs)
        (layers,) = yield from measured(group)
        return by_layer(layers)

    def _pairs(self, boxes: BoxCounts) -> int:
        return self.groups * sum(boxes.targets)
