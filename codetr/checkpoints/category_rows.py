"""Official class embeddings whose rows are COCO's category ids, some of which name no class."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from codetr.checkpoints.coco import COCO

CATEGORY_ROWS = 91
"""Rows of such embeddings, without background: ids 0 to 90."""


def coco_rows(official: Mapping[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """The same with 80 rows in the tensors that ``pattern`` matches: those of COCO's classes, in
    their order. What follows the ids, background, stays at the end.
    """
    classes = torch.tensor(COCO.category_ids)
    return {
        key: torch.cat([value[classes], value[CATEGORY_ROWS:]])
        if re.fullmatch(pattern, key)
        else value
        for key, value in official.items()
    }
