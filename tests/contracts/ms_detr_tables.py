"""What MS-DETR's repository (README, scripts/train_*.sh) says of its experiments, in the words of
the tables of ``test_recipes`` and ``official_shapes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from official_shapes import (
    DIM,
    LAYERS,
    channel_mapper,
    deformable_pp,
    feed_forward,
    norm,
    resnet50,
    widths,
)

Recipe = Mapping[str, Any]

CLASSES = 91
"""Outputs of the official models: category ids."""


def ms_detr_recipes(deformable: Recipe) -> dict[str, Recipe]:
    """``deformable``: two-stage, ResNet-50, 12 epochs, without auxiliary heads."""
    plain = {**deformable, "loss_cls": ("FocalLoss", 1.0)}  # the scheme's own loss: 2
    wide = {**plain, "num_query": 900, "test_cfg.max_per_img": 300}
    return {
        "ms_detr_r50_300q_1x_coco": plain,
        "ms_detr_pp_r50_300q_1x_coco": plain,
        "ms_detr_pp_r50_900q_1x_coco": wide,
    }


def ms_detr_parameters() -> dict[str, tuple[int, int]]:
    """Experiment: number of classes, number of parameters."""
    trunk = resnet50() + channel_mapper(widths(256, 3), bias=True)
    branches = LAYERS * (feed_forward(2048) + norm(DIM))
    narrow = deformable_pp(trunk, CLASSES, 300) + branches
    return {
        "ms_detr_r50_300q_1x_coco": (CLASSES, narrow - 300 * DIM),  # no learned content
        "ms_detr_pp_r50_300q_1x_coco": (CLASSES, narrow),
        "ms_detr_pp_r50_900q_1x_coco": (CLASSES, narrow + 600 * DIM),
    }
