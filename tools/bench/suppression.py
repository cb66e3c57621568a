"""Ways to suppress the RPN's boxes, as candidates to be measured: those of
``codetr.suppression``, and one more that has no sequential part. All keep the
same boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from codetr.boxes import pairwise_iou
from codetr.suppression import image_by_image, set_by_set

SIZES = (4000, 4000, 4000, 4000, 2457, 693)
"""Proposals per level of an 800 x 1333 image, in training."""
OVERLAP = 0.7
ROUNDS = 8
"""Between two looks at whether anything changed, each of which waits for a GPU."""

Way = Callable[[Tensor, Tensor, Sequence[int], float], Tensor]


def by_fixed_point(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """``codetr.suppression.surviving``, all sets of an image at once.

    A box is kept if no better one that is kept overlaps it. Applied to all boxes at once, starting
    from all of them, this settles the best n boxes after n rounds, and mostly all of them after
    some ten (Cluster-NMS, arXiv 2005.03572). Its memory is two bytes and some temporaries per pair
    of boxes of a set, for one image at a time.
    """
    pairs = zip(boxes, scores, strict=True)
    return torch.stack([_of_one_image(own, score, sizes, iou) for own, score in pairs])


def _of_one_image(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    longest = max(sizes)
    place = torch.cat(
        [
            torch.arange(size, device=boxes.device) + number * longest
            for number, size in enumerate(sizes)
        ]
    )
    # what fills a set up has no area: it overlaps nothing
    ranks = scores.new_full((len(sizes) * longest,), -torch.inf).index_copy(0, place, scores)
    corners = boxes.new_zeros(len(sizes) * longest, 4).index_copy(0, place, boxes)
    order = ranks.view(len(sizes), longest).sort(dim=1, descending=True, stable=True).indices
    best_first = corners.view(len(sizes), longest, 4).gather(1, order[..., None].expand(-1, -1, 4))
    precision = torch.float16 if boxes.device.type == "cuda" else torch.float32
    overlap = torch.stack([pairwise_iou(own, own) > iou for own in best_first])
    above = overlap.tril(-1).to(precision)  # (sets, box, better box)
    kept = above.new_ones(len(sizes), longest, 1)
    settled = False
    while not settled:
        for _ in range(ROUNDS):
            before, kept = kept, (above @ kept == 0).to(precision)
        settled = torch.equal(before, kept)
    found = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, kept.squeeze(2) > 0)
    return found.flatten()[place]


WAYS: dict[str, Way] = {
    "one call per image, float64": image_by_image,
    "one call per level": set_by_set,
    "fixed point, all levels of an image": by_fixed_point,
}


def crowd(images: int, sizes: Sequence[int], spread: float, device: torch.device) -> tuple[
    Tensor, Tensor
]:  # fmt: skip
    """Boxes (B, T, 4) xyxy of up to ``spread`` + 8 pixels in 900 x 900, and scores (B, T)."""
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(images, sum(sizes), 2, generator=random) * 900
    extent = torch.rand(images, sum(sizes), 2, generator=random) * spread + 8
    scores = torch.rand(images, sum(sizes), generator=random)
    return torch.cat([corner, corner + extent], dim=-1).to(device), scores.to(device)
