"""Convert recorded denoising draws to the layout of our schemes, and our noised boxes to theirs.

The official codes number noised boxes ("items") group by group (DINO: positives of a group, then
its negatives), and within each by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codetr.structures import QueryGroup
from codetr.supervision.schemes.denoising import Noise
from codetr.supervision.schemes.query_denoising import QueryNoise
from tools.parity.recorded import Recorded
from tools.parity.rules import Array


def query_noise(recorded: Recorded, counts: Sequence[int]) -> QueryNoise:
    """Draws of DN-DETR for images with ``counts`` boxes."""
    arrays = recorded.arrays
    return QueryNoise(
        flip=_slots(arrays["dn_draw_label_u"], counts),
        labels=_slots(arrays["dn_draw_new_label"], counts).long(),
        shifts=_slots(arrays["dn_draw_box_u"], counts),
    )


def dino_noise(recorded: Recorded, counts: Sequence[int]) -> Noise:
    """Draws of DINO for images with ``counts`` boxes."""
    arrays, draw = recorded.arrays, "dn_draw_"
    return contrastive_noise(
        arrays[f"{draw}label_u"],
        arrays[f"{draw}new_label"],
        arrays[f"{draw}box_sign"].round(),
        arrays[f"{draw}box_u"],
        counts,
    )


def contrastive_noise(
    flip: Array, labels: Array, signs: Array, shifts: Array, counts: Sequence[int]
) -> Noise:
    """Draws of all items as (B, groups, positive | negative, n, ...); the given ``signs`` are 0 or
    1.
    """

    def halves(items: Array) -> Tensor:
        return _slots(items, counts).unflatten(1, (-1, 2))

    return Noise(
        flip=halves(flip),
        labels=halves(labels).long(),
        signs=halves(signs * 2.0 - 1.0),
        shifts=halves(shifts),
    )


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
    labels = torch.cat([t.labels for t in group.targets])
    boxes = torch.cat([t.boxes for t in group.targets])
    target = pairs.target[order]
    return {
        "dn_labels_true": labels[target],
        "dn_boxes_true": boxes[target],
        "dn_batch_index": pairs.image[order],
        "dn_slot": pairs.query[order],
    }
