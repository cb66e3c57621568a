"""Non-maximum suppression within many sets of boxes at once: the levels of a batch of images.

There are several exact methods, which keep the same boxes. The fastest one depends on the device:
on CUDA, each process times them once on its first boxes. Processes of a run may so choose different
methods, which changes no result.
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
CHECK_EVERY = 8
"""Rounds of ``by_fixed_point`` between two convergence checks, each of which synchronises."""
TIMED_RUNS = 3
"""Timed runs of each method, of which the fastest counts."""

Method = Callable[[Tensor, Tensor, Sequence[int], float], Tensor]
"""As ``surviving``, with boxes and distinct scores in float64."""

log = logging.getLogger(__name__)
_choice = AUTO


def use_nms(choice: str) -> None:
    """Choose the method of this process: a name in ``METHODS``, or ``auto``: the fastest on CUDA,
    ``level`` elsewhere. Raises UserError for any other name.
    """
    global _choice
    if choice not in (AUTO, *METHODS):
        raise UserError(
            f"ops.nms={choice}: no such choice: take one of {', '.join((AUTO, *METHODS))}"
        )
    _choice = choice


def surviving(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """(B, T) bool: whether each of ``boxes`` (B, T, 4) xyxy with ``scores`` (B, T) is kept by NMS
    with the threshold ``iou``; of equal scores, the first one is the better.

    ``sizes``: of the sets of an image, which are stored one after the other.
    """
    global _choice
    if not scores.numel():
        return scores.new_zeros(scores.shape, dtype=torch.bool)
    # Remove what the methods could disagree on. The IoU of float32 boxes is exact in float64 up to
    # one rounding, even if the boxes are shifted. Scores become ranks, since torchvision's sorting
    # need not be stable. Its CUDA kernel has a float32 threshold: the next float32 above keeps
    # boxes whose IoU equals the threshold, as the comparison in float64 does.
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    given = (boxes.double(), -ranks.double(), sizes, _float32_from(iou))
    if _choice == AUTO and boxes.is_cuda:
        _choice = fastest({name: partial(method, *given) for name, method in METHODS.items()})
    return METHODS["level" if _choice == AUTO else _choice](*given)


def fastest(works: dict[str, Callable[[], object]]) -> str:
    """The name of the fastest of ``works`` on the current CUDA stream; logs all times. A function
    that runs out of memory counts as infinitely slow.
    """
    taken = {}
    for name, work in works.items():
        try:
            work()  # warm-up
            taken[name] = min(_milliseconds(work) for _ in range(TIMED_RUNS))
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
    """One call per set: the least work, since the time is quadratic in the number of boxes."""
    every = list(sizes) * len(boxes)
    pairs = zip(boxes.flatten(0, 1).split(every), scores.flatten().split(every), strict=True)
    return torch.cat([_kept(own, score, iou) for own, score in pairs]).view_as(scores)


def image_by_image(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """One call per image, with its sets shifted apart. One call for the whole batch would overflow:
    on a GPU, the memory of a call is quadratic in the number of boxes.
    """
    steps = [torch.full((size,), number, device=boxes.device) for number, size in enumerate(sizes)]
    apart = boxes + (torch.cat(steps) * (boxes.max() - boxes.min() + 1))[:, None]
    return torch.stack([_kept(own, score, iou) for own, score in zip(apart, scores, strict=True)])


def by_fixed_point(boxes: Tensor, scores: Tensor, sizes: Sequence[int], iou: float) -> Tensor:
    """All sets of an image at once, without a sequential part.

    A box is kept if no better kept box overlaps it. Iterated from the state in which all boxes are
    kept, this rule is final for the best n boxes after n rounds, and usually for all after about
    ten (Cluster-NMS, arXiv 2005.03572). Memory: two bytes per pair of boxes of a set, and
    temporaries of one set, for one image at a time.
    """
    longest = max(sizes)
    places = [torch.arange(n, device=boxes.device) + i * longest for i, n in enumerate(sizes)]
    place, padded = torch.cat(places), len(sizes) * longest
    pairs = zip(boxes, scores, strict=True)
    return torch.stack([_fixed_point(*pair, place, (padded, longest), iou) for pair in pairs])


METHODS: dict[str, Method] = {
    "image": image_by_image,
    "level": set_by_set,
    "fixed_point": by_fixed_point,
}


def _fixed_point(
    boxes: Tensor, scores: Tensor, place: Tensor, size: tuple[int, int], iou: float
) -> Tensor:
    """(T,) bool: whether each of ``boxes`` (T, 4) is kept. ``place`` (T,) is its position among
    ``size[0]`` boxes of sets padded to ``size[1]`` boxes each.
    """
    padded, longest = size
    # padding has no area and overlaps nothing
    ranks = scores.new_full((padded,), -torch.inf).index_copy(0, place, scores)
    corners = boxes.new_zeros(padded, 4).index_copy(0, place, boxes)
    order = ranks.view(-1, longest).argsort(dim=1, descending=True)
    best_first = corners.view(-1, longest, 4).gather(1, order[..., None].expand(-1, -1, 4))
    precision = torch.float16 if boxes.is_cuda else torch.float32
    overlap = torch.stack([pairwise_iou(own, own, eps=0.0) > iou for own in best_first])
    above = overlap.tril(-1).to(precision)  # (sets, box, better box)
    kept = above.new_ones(*order.shape, 1)
    converged = False
    while not converged:
        for _ in range(CHECK_EVERY):
            before, kept = kept, (above @ kept == 0).to(precision)
        converged = torch.equal(before, kept)
    found = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, kept.squeeze(2) > 0)
    return found.flatten()[place]


def _kept(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """(T,) bool: whether torchvision's NMS keeps each of ``boxes`` (T, 4)."""
    index = nms(boxes, scores, iou)
    return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device).index_fill(0, index, True)


def _float32_from(number: float) -> float:
    """``number`` rounded up to float32."""
    near = np.float32(number)
    return float(near if float(near) >= number else np.nextafter(near, np.float32(np.inf)))


def _milliseconds(work: Callable[[], object]) -> float:
    """The time of one run on the current CUDA stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
