"""What the repositories of YOLOS and ViDT say of their experiments, and the paper of Teach-DETR, in
the words of the tables of ``test_recipes`` and ``official_shapes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from official_shapes import DIM, branch, conv, decoder, linear, norm, swin, widths

Recipe = Mapping[str, Any]

CLASSES = 91
"""Outputs of the official models: category ids; YOLOS has background besides."""
TOKENS = 100


def token_recipes(deformable: Recipe) -> dict[str, Recipe]:
    """``deformable``: two-stage, ResNet-50, 12 epochs, without auxiliary heads, data as DETR's."""
    common: Recipe = {
        **deformable,
        "custom_keys.lr_mult": {},
        "lr_config.step": [],
        "encoder.num_layers": None,
        "encoder.with_cp": None,
        "num_feature_levels": None,
        "num_query": TOKENS,
        "Resize.img_scale": (list(range(480, 801, 16)), 1333),
    }
    yolos = {
        **common,
        "optimizer.lr": 2.5e-5,
        "min_lr": 1e-7,
        "runner.max_epochs": 150,
        "samples_per_gpu": 1,
        "images per step": 8,
        "backbone.drop_path_rate": 0.0,
        "backbone.use_checkpoint": False,
        "loss_cls": ("CrossEntropyLoss", 1.0),
    }
    vidt = {
        **common,
        "optimizer.lr": 1e-4,
        "min_lr": 1e-7,
        "runner.max_epochs": 50,
        "backbone.drop_path_rate": 0.2,
    }
    return {
        "yolos_s_150e_coco": yolos,
        "vidt_swin_small_50e_coco": vidt,
        "teach_yolos_s_150e_coco": yolos,
        "teach_vidt_swin_small_50e_coco": {**vidt, "Pad.size_divisor": 32},
    }


def yolos_s() -> int:
    width, depth = 384, 12
    block = linear(width, 3 * width) + linear(width, width) + 2 * norm(width)
    block += linear(width, 4 * width) + linear(4 * width, width)
    positions = depth * (1 + 32 * 54 + TOKENS) * width
    heads = 4 * linear(width, width) + linear(width, CLASSES + 1) + linear(width, 4)
    trunk = conv(3, width, 16, bias=True) + positions + (1 + TOKENS) * width
    return trunk + depth * block + norm(width) + heads


def vidt_swin_small() -> int:
    """All that is read."""
    depths, stages = (2, 2, 18, 2), (96, 192, 384, 768)
    total = swin(96, depths, 3, 7, maps=0) + norm(4 * 768) + linear(4 * 768, DIM, bias=False)
    total += TOKENS * (96 + DIM)
    total += sum(d * linear(DIM, width) for d, width in zip(depths, stages, strict=True))
    total += sum(conv(c, DIM, 1, bias=True) + norm(DIM) for c in (*stages[1:], DIM))
    total += linear(768, DIM) + linear(DIM, DIM) + 2 * norm(DIM) + linear(DIM, 2)
    return total + decoder(4, hidden=1024) + 7 * branch(CLASSES)


def vidt_unread() -> int:
    """What the official model holds but never reads: a level embedding, norms of the maps, and
    parts of patch merging.
    """
    stages = (96, 192, 384, 768)
    merging = sum(c * out + norm(c) for c, out in zip(stages, (192, 384, 768, DIM), strict=True))
    return 4 * DIM + sum(norm(c) for c in widths(96, 3)) + merging


def token_parameters() -> dict[str, tuple[int, int]]:
    """Experiment: number of classes, number of parameters that are read."""
    found = {"yolos_s_150e_coco": yolos_s(), "vidt_swin_small_50e_coco": vidt_swin_small()}
    found |= {f"teach_{name}": count for name, count in found.items()}
    return {name: (CLASSES, count) for name, count in found.items()}
