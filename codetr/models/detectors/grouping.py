"""Several query groups in one decoder pass: concatenation, the attention mask, and splitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from codetr.structures import Decoded, Predictions, Queries, QueryGroup, Tap


def separable(groups: Sequence[QueryGroup]) -> list[list[QueryGroup]]:
    """The groups in sets without attention between them: a group is with those that it sees."""
    by_name = {group.name: group for group in groups}
    sets: list[set[str]] = []
    for group in groups:
        linked = {group.name, *group.sees}
        touching = [s for s in sets if s & linked]
        sets = [s for s in sets if not s & linked] + [linked.union(*touching)]
    return [[by_name[g.name] for g in groups if g.name in names] for names in sets]


def joined(groups: Sequence[QueryGroup]) -> Queries:
    """Concatenate the queries of all groups (without proposals and padding)."""
    positions = [g.queries.position for g in groups if g.queries.position is not None]
    return Queries(
        content=torch.cat([group.queries.content for group in groups], dim=1),
        anchors=torch.cat([group.queries.anchors for group in groups], dim=1),
        position=torch.cat(positions, dim=1) if len(positions) == len(groups) else None,
    )


def attention_mask(groups: Sequence[QueryGroup]) -> Tensor | None:
    """Which query (row) may attend to which (column): (Q, Q) bool, or (B, 1, Q, Q) where groups
    have padding; None where all may. A group sees itself and the groups in ``sees``.
    """
    if len(groups) == 1 and groups[0].blocked is None and groups[0].queries.padding is None:
        return None
    content = groups[0].queries.content
    lengths = [len(group) for group in groups]
    starts = {g.name: sum(lengths[:i]) for i, g in enumerate(groups)}
    allowed = torch.zeros(sum(lengths), sum(lengths), dtype=torch.bool, device=content.device)
    for group, length in zip(groups, lengths, strict=True):
        rows = slice(starts[group.name], starts[group.name] + length)
        allowed[rows, rows] = True if group.blocked is None else ~group.blocked
        for seen in groups:
            if seen.name in group.sees:
                allowed[rows, starts[seen.name] : starts[seen.name] + len(seen)] = True
    if all(group.queries.padding is None for group in groups):
        return allowed
    void = torch.cat([_padding(group) for group in groups], dim=1)
    itself = torch.eye(sum(lengths), dtype=torch.bool, device=content.device)
    return ((allowed & ~void[:, None]) | itself)[:, None]  # padding still sees itself: no NaN


def additive(allowed: Tensor | None, content: Tensor) -> Tensor | None:
    """``allowed`` (..., Q, Q) as an additive mask: 0 where True, -inf elsewhere, in the dtype of
    attention on ``content`` (B, Q, C), so that no layer has to convert it. None stays None.
    """
    if allowed is None:
        return None
    queries = allowed.shape[-1]
    # Memory-efficient attention reads rows in place if they start at multiples of 8 elements.
    rows = torch.zeros(
        *allowed.shape[:-1], -(-queries // 8) * 8, dtype=_running(content), device=content.device
    )
    return rows[..., :queries].masked_fill_(~allowed, -torch.inf)


def _running(content: Tensor) -> torch.dtype:
    """The dtype of the output of linear layers on ``content``, with or without autocast."""
    device = content.device.type
    known = torch.amp.is_autocast_available(device)
    if known and torch.is_autocast_enabled(device) and content.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return content.dtype


def _padding(group: QueryGroup) -> Tensor:
    padding, content = group.queries.padding, group.queries.content
    return content.new_zeros(content.shape[:2], dtype=torch.bool) if padding is None else padding


def split(
    groups: Sequence[QueryGroup],
    layers: Sequence[Predictions],
    taps: Mapping[str, Sequence[Tap]],
) -> dict[str, Decoded]:
    """Split the predictions and taps of joined queries into groups, by name."""
    lengths = [len(group) for group in groups]
    logits = [layer.logits.split(lengths, dim=1) for layer in layers]
    boxes = [layer.boxes.split(lengths, dim=1) for layer in layers]
    parts = {name: [_cut(tap, lengths) for tap in chain] for name, chain in taps.items()}
    return {
        group.name: Decoded(
            group=group,
            layers=tuple(
                replace(layer, logits=logits[i][g], boxes=boxes[i][g])
                for i, layer in enumerate(layers)
            ),
            taps={name: tuple(tap[g] for tap in chain) for name, chain in parts.items()},
        )
        for g, group in enumerate(groups)
    }


def _cut(tap: Tap, lengths: Sequence[int]) -> list[Tap]:
    parts = zip(tap.hidden.split(lengths, 1), tap.anchors.split(lengths, 1), strict=True)
    return [Tap(hidden=hidden, anchors=anchors, read=tap.read) for hidden, anchors in parts]
