"""Customised positive queries: an auxiliary head's assigned boxes as decoder queries.

Co-DETR (arXiv 2211.12860), section 3.3 and equation 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from codetr.boxes import logit
from codetr.structures import Assignment, Candidates, Queries, QueryGroup, Targets

LOGIT_EPS = 1e-5

Embedding = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""Anchors (B, Q, 4) and features (B, Q, C) to content and, where it is fixed, position."""


def positive_group(
    name: str,
    candidates: Sequence[Candidates],
    sizes: Sequence[Tensor],
    num_classes: int,
    embedding: Embedding,
    limits: tuple[int, int],
) -> QueryGroup:
    """One query per positive candidate; images with fewer are filled up with negatives.

    Q is the largest number of positives in an image, within ``limits`` (lowest, highest);
    positives beyond it are drawn at random, and so are the negatives. ``sizes[b]`` is (width,
    height) of image b in pixels.
    """
    is_positive = [c.labels < num_classes for c in candidates]
    counts = torch.stack([p.sum() for p in is_positive]).tolist()  # the one sync: fixes Q
    lowest, highest = limits
    wanted = min(max(*counts, lowest), highest, *(len(c) for c in candidates))
    keeps = [_choose(p, n, wanted) for p, n in zip(is_positive, counts, strict=True)]
    chosen = [_take(c, keep) for c, keep in zip(candidates, keeps, strict=True)]
    boxes = torch.stack([c.boxes for c in chosen])
    inside = logit(boxes, LOGIT_EPS).sigmoid()  # the embedding alone sees clamped coordinates
    content, position = embedding(inside, torch.stack([c.features for c in chosen]))
    positives = [min(n, wanted) for n in counts]
    return QueryGroup(
        name=name,
        queries=Queries(content=content, anchors=boxes, position=position),
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
    """Indices of ``wanted`` candidates: the positives (at random if too many), then negatives."""
    positive = is_positive.nonzero()[:, 0]
    if count >= wanted:
        if count > wanted:
            positive = positive[torch.randperm(count)[:wanted].to(positive.device)]
        return positive
    negative = (~is_positive).nonzero()[:, 0]
    drawn = torch.randperm(len(negative))[: wanted - count].to(negative.device)
    return torch.cat([positive, negative[drawn]])


def _first_ones(counts: Sequence[int], device: torch.device) -> Assignment:
    """The first ``counts[b]`` queries of image b belong to its targets in order."""
    query = torch.cat([torch.arange(n) for n in counts])
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Assignment(image=image, query=query, target=torch.arange(len(query))).to(device)
