"""Randomness and selections of recorded runs: patches that repeat them, and our noised boxes in the
official order.

The official codes number noised boxes ("items") group by group (DINO: positives of a group, then
its negatives), and within each by image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from codetr.structures import QueryGroup
from codetr.supervision.schemes import denoising, query_denoising
from codetr.supervision.schemes.denoising import Noise
from codetr.supervision.schemes.query_denoising import QueryNoise
from tools.parity.case import Case
from tools.parity.rules import Array, fixed_permutation

DRAW = "dn_draw_"
"""Beginning of the names of recorded draws."""


def as_recorded(case: Case) -> Iterator[AbstractContextManager[Any]]:
    """Patches for a run of ``case``: a fixed permutation, denoising without noise (Co-DETR) or
    under the recorded draws, and the recorded selection of proposals where scores are so close that
    the official run selected others: in float32, and in MS-DETR if the record says so.
    """
    recorded, scheme = case.recorded, case.schemes
    yield mock.patch.object(torch, "randperm", fixed_permutation)
    if recorded.of_co_detr and denoising.GROUP in scheme:
        for name in ("label_noise", "box_noise"):
            yield mock.patch.object(scheme[denoising.GROUP], name, 0.0)
    elif any(len(t) for t in case.batch.targets):
        counts = [len(t) for t in case.batch.targets]
        for name, read in ((query_denoising.GROUP, _query_noise), (denoising.GROUP, _noise)):
            if name in scheme:
                draws = {k.removeprefix(DRAW): v for k, v in recorded.arrays.items() if DRAW in k}
                yield mock.patch.object(
                    scheme[name], "draw", mock.Mock(return_value=read(draws, counts))
                )
    said = recorded.losses.get("float32_vs_float64", {})
    if recorded.of_co_detr:
        selection = "eval/topk_indices" if case.dtype == torch.float32 else None
    else:
        close = "mixed" in scheme and not said.get("topk_order_same_in_float64", True)
        selection = "topk_index" if close else None
    if selection is not None:
        indices = torch.from_numpy(recorded.arrays[selection]).long()
        yield mock.patch.object(case.detector.query_init.stage, "select", return_value=indices)


def _query_noise(draws: dict[str, Array], counts: Sequence[int]) -> QueryNoise:
    """Draws of DN-DETR for images with ``counts`` boxes."""
    return QueryNoise(
        flip=_slots(draws["label_u"], counts),
        labels=_slots(draws["new_label"], counts).long(),
        shifts=_slots(draws["box_u"], counts),
    )


def _noise(draws: dict[str, Array], counts: Sequence[int]) -> Noise:
    """Draws of DINO for images with ``counts`` boxes."""
    signs = draws["box_sign"].round()
    return contrastive_noise(draws["label_u"], draws["new_label"], signs, draws["box_u"], counts)


def contrastive_noise(
    flip: Array, labels: Array, signs: Array, shifts: Array, counts: Sequence[int]
) -> Noise:
    """Draws of all items as (B, groups, positive | negative, n, ...); the given ``signs`` are 0 or
    1.
    """
    given = (flip, labels, signs * 2.0 - 1.0, shifts)
    flips, new, moves, parts = (_slots(one, counts).unflatten(1, (-1, 2)) for one in given)
    return Noise(flip=flips, labels=new.long(), signs=moves, shifts=parts)


def _slots(items: Array, counts: Sequence[int]) -> Tensor:
    """Rearrange items to (B, groups, n, ...), with zeros in slots without a box."""
    draws = torch.from_numpy(items).double()
    groups = draws.unflatten(0, (-1, sum(counts)))  # (G, T, ...)
    slots = draws.new_zeros(len(counts), len(groups), max(counts), *draws.shape[1:])
    for b, own in enumerate(groups.split(list(counts), dim=1)):
        slots[b, :, : counts[b]] = own
    return slots


def items(group: QueryGroup, counts: Sequence[int]) -> dict[str, Tensor]:
    """Labels, boxes, image and slot of all noised boxes of our ``group``, in the official order."""
    pairs: Any = group.assignment
    order = torch.argsort(pairs.query // max(counts) * len(counts) + pairs.image, stable=True)
    target = pairs.target[order]
    return {
        "dn_labels_true": torch.cat([t.labels for t in group.targets])[target],
        "dn_boxes_true": torch.cat([t.boxes for t in group.targets])[target],
        "dn_batch_index": pairs.image[order],
        "dn_slot": pairs.query[order],
    }
