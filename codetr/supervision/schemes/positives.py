"""Customised positive queries: an auxiliary head's assigned boxes as decoder queries.

Co-DETR (arXiv 2211.12860), section 3.3 and equation 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from codetr.boxes import logit
from codetr.structures import Assignment, Candidates, Queries, QueryGroup, Targets
from codetr.supervision.assigners.sampling import ranked

LOGIT_EPS = 1e-5

Embedding = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""Anchors (B, Q, 4) and features (B, Q, C) to content and, where it is fixed, position."""


def count_positives(heads: Sequence[Sequence[Candidates]], num_classes: int) -> list[list[int]]:
    """How many of each head's candidates of each image are positive. Numbers of queries depend on
    it, so it has to be known on the host: one copy leaves the device, for all heads together.
    """
    counts = [[(c.labels < num_classes).sum() for c in candidates] for candidates in heads]
    found: list[list[int]] = torch.stack([torch.stack(own) for own in counts]).tolist()
    return found


def positive_group(
    name: str,
    candidates: Sequence[Candidates],
    sizes: Sequence[Tensor],
    num_classes: int,
    embedding: Embedding,
    limits: tuple[int, int],
    counts: Sequence[int],
    coordinates: int = 4,
) -> QueryGroup:
    """One query per positive candidate; images with fewer are filled up with negatives.

    Q is the largest number of positives in an image, within ``limits`` (lowest, highest). Where an
    image has more, a random subset is taken; negatives are drawn at random, too. ``sizes[b]`` is
    (width, height) of image b in pixels; ``counts`` is this head's row of ``count_positives``. The
    first ``coordinates`` of the boxes become anchors: 2, the centres, where anchors are points.
    """
    lowest, highest = limits
    wanted = min(max(*counts, lowest), highest, *(len(c) for c in candidates))
    chosen = [
        _take(c, _choose(c.labels < num_classes, n, wanted))
        for c, n in zip(candidates, counts, strict=True)
    ]
    boxes = torch.stack([c.boxes for c in chosen])
    inside = logit(boxes, LOGIT_EPS).sigmoid()  # the embedding alone sees clamped coordinates
    content, position = embedding(inside, torch.stack([c.features for c in chosen]))
    positives = [min(n, wanted) for n in counts]
    return QueryGroup(
        name=name,
        queries=Queries(content=content, anchors=boxes[..., :coordinates], position=position),
        targets=tuple(
            Targets(
                boxes=c.targets[:n],
                labels=c.labels[:n],
                weights=torch.ones_like(c.targets[:n, 0]),
                size=size,
            )
            for c, n, size in zip(chosen, positives, sizes, strict=True)
        ),
        assignment=_first_ones(positives, boxes.device),
    )


def _take(candidates: Candidates, keep: Tensor) -> Candidates:
    return candidates.map(lambda value: value[keep])


def _choose(is_positive: Tensor, count: int, wanted: int) -> Tensor:
    """Indices of ``wanted`` candidates: the ``count`` positives (at random if too many), then
    negatives. The draws are made on the CPU, so that a seed gives the same on every device.
    """
    if count > wanted:
        return ranked(is_positive, torch.randperm(count)[:wanted])
    positive = ranked(is_positive, torch.arange(count))
    drawn = torch.randperm(len(is_positive) - count)[: wanted - count]
    return torch.cat([positive, ranked(~is_positive, drawn)])


def _first_ones(counts: Sequence[int], device: torch.device) -> Assignment:
    """The first ``counts[b]`` queries of image b belong to its targets in order."""
    query = torch.cat([torch.arange(n) for n in counts])
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    pairs = Assignment(image=image, query=query, target=torch.arange(len(query)))
    return pairs.to(device, non_blocking=True)
