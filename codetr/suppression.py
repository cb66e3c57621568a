"""Non-maximum suppression within many sets of boxes at once: the levels of a batch of images.

There are several exact ways, which keep the same boxes, to the last one. Which is quickest depends
on the device: on CUDA they are timed once in a process, on the first boxes that come. Processes
that run in parallel may so take different ways, which changes no result.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from codetr.boxes import pairwise_iou
from codetr.errors import UserError

AUTO = "auto"
LOOK_EVERY = 8
"""Rounds of ``by_fixed_point`` between two looks at whether anything changed: a GPU waits each."""
TIMED = 3
"""Runs of each way that are timed; the best one counts."""

Way = Callable[[Tensor, Tensor, Sequence[int], float], Tensor]
"""As ``surviving``, with boxes and scores in float64, no score twice in an image."""

log = logging.getLogger(__name__)
_choice = AUTO


def use_nms(choice: str) -> None:
    """Settle how this process suppresses: a name of ``WAYS``, or ``auto``: the quickest on CUDA,
    one call per set elsewhere. Raises UserError for any other.
    """
    global _choice
    if choice not in (AUTO, *WAYS):
        raise UserError(f"ops.nms={choice}: no such choice: take one of {', '.join((AUTO, *WAYS))}")
    _choice = choice


def surviving(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """(B, T) bool: which of an image's ``boxes`` (B, T, 4) xyxy with ``scores`` (B, T) are kept at
    overlap ``iou``; of equal scores the first counts as the better one.

    ``sizes`` are those of an image's sets, which lie one after the other.
    """
    global _choice
    if not scores.numel():
        return scores.new_zeros(scores.shape, dtype=torch.bool)
    # All that ways could disagree on is settled before. Overlaps of float32 boxes are exact in
    # float64 up to one rounding, wherever the boxes are moved. Scores become ranks, since sorting
    # need not be stable in torchvision. Its CUDA kernel has thresholds in float32: the next above
    # leaves boxes whose overlap is the threshold alone, as comparing with it does.
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    given = (boxes.double(), -ranks.double(), sizes, _float32_from(iou))
    if _choice == AUTO and boxes.is_cuda:
        _choice = quickest({name: partial(way, *given) for name, way in WAYS.items()})
    return WAYS["level" if _choice == AUTO else _choice](*given)


def quickest(works: dict[str, Callable[[], object]]) -> str:
    """The name of what takes the least time on the current CUDA stream; logs all times. What needs
    more memory than there is takes for ever.
    """
    taken = {}
    for name, work in works.items():
        try:
            work()  # the first run fills caches
            taken[name] = min(_milliseconds(work) for _ in range(TIMED))
        except torch.OutOfMemoryError:
            taken[name] = math.inf
    best = min(taken, key=taken.__getitem__)
    every = ", ".join(
        f"{name} {'out of memory' if math.isinf(time) else f'{time:.2f} ms'}"
        for name, time in taken.items()
    )
    log.info("suppression of proposals: %s (%s; ops.nms chooses)", best, every)
    return best


def set_by_set(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """One call per set: the least work, where time grows with the square."""
    every = list(sizes) * len(boxes)
    pairs = zip(boxes.flatten(0, 1).split(every), scores.flatten().split(every), strict=True)
    return torch.cat([_kept(own, score, iou) for own, score in pairs]).view_as(scores)


def image_by_image(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """One call per image, with its sets moved apart. (The memory of a call on a GPU grows with the
    square of its boxes: one call for the whole batch would overflow.)
    """
    steps = [torch.full((size,), number, device=boxes.device) for number, size in enumerate(sizes)]
    apart = boxes + (torch.cat(steps) * (boxes.max() - boxes.min() + 1))[:, None]
    return torch.stack([_kept(own, score, iou) for own, score in zip(apart, scores, strict=True)])


def by_fixed_point(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """Without a sequential part, all sets of an image at once.

    A box is kept if no better one that is kept overlaps it. Applied to all boxes at once, starting
    from all of them, this settles the best n boxes after n rounds, and mostly all of them after
    some ten (Cluster-NMS, arXiv 2005.03572). Its memory is two bytes per pair of boxes of a set,
    and some temporaries of one set, for one image at a time.
    """
    longest = max(sizes)
    places = [torch.arange(n, device=boxes.device) + i * longest for i, n in enumerate(sizes)]
    place, padded = torch.cat(places), len(sizes) * longest
    pairs = zip(boxes, scores, strict=True)
    return torch.stack([_settled(*pair, place, (padded, longest), iou) for pair in pairs])


WAYS: dict[str, Way] = {
    "image": image_by_image,
    "level": set_by_set,
    "fixed_point": by_fixed_point,
}


def _settled(
    boxes: Tensor, scores: Tensor, place: Tensor, size: tuple[int, int], iou: float
) -> Tensor:
    """(T,) bool, from ``boxes`` (T, 4), whose ``place`` (T,) is among ``size[0]`` of sets that were
    filled up to ``size[1]`` boxes each.
    """
    padded, longest = size
    # what fills a set up has no area: it overlaps nothing
    ranks = scores.new_full((padded,), -torch.inf).index_copy(0, place, scores)
    corners = boxes.new_zeros(padded, 4).index_copy(0, place, boxes)
    order = ranks.view(-1, longest).argsort(dim=1, descending=True)
    best_first = corners.view(-1, longest, 4).gather(1, order[..., None].expand(-1, -1, 4))
    precision = torch.float16 if boxes.is_cuda else torch.float32
    overlap = torch.stack([pairwise_iou(own, own, eps=0.0) > iou for own in best_first])
    above = overlap.tril(-1).to(precision)  # (sets, box, better box)
    kept = above.new_ones(*order.shape, 1)
    settled = False
    while not settled:
        for _ in range(LOOK_EVERY):
            before, kept = kept, (above @ kept == 0).to(precision)
        settled = torch.equal(before, kept)
    found = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, kept.squeeze(2) > 0)
    return found.flatten()[place]


def _kept(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """(T,) bool: which of (T, 4) boxes one NMS keeps."""
    index = nms(boxes, scores, iou)
    return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device).index_fill(0, index, True)


def _float32_from(number: float) -> float:
    """The smallest float32 that is not below ``number``."""
    near = np.float32(number)
    return float(near if float(near) >= number else np.nextafter(near, np.float32(np.inf)))


def _milliseconds(work: Callable[[], object]) -> float:
    """Of one run on the current CUDA stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
