"""The classes of COCO, which official files without class names are assumed to have. In some of
them, rows of class embeddings are COCO's category ids, of which some are unused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from codetr.classes import ClassList

_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
    "fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, "
    "bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, "
    "sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, "
    "bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, "
    "carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, "
    "tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)

UNUSED_IDS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""Ids from 1 to 90 that no category of the annotation files has."""

COCO = ClassList(
    names=tuple(_NAMES.split(", ")),
    category_ids=tuple(i for i in range(1, 91) if i not in UNUSED_IDS),
)

CATEGORY_ROWS = 91
"""Number of rows of such embeddings without background, one for each id from 0 to 90."""


def coco_rows(official: Mapping[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """The state dict with the rows of COCO's 80 classes in the tensors whose names ``pattern``
    matches. Rows of background, which follow those of the ids, are kept at the end.
    """
    classes = torch.tensor(COCO.category_ids)
    return {
        key: torch.cat([value[classes], value[CATEGORY_ROWS:]])
        if re.fullmatch(pattern, key)
        else value
        for key, value in official.items()
    }
