"""What the repositories of Conditional DETR, DAB-DETR and DN-DETR (READMEs and ``main.py``) say of
their DC5 experiments, in the words of the tables of ``test_recipes`` and ``official_shapes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from official_shapes import (
    COCO,
    DIM,
    LAYERS,
    auxiliary_heads,
    branch,
    conv,
    feature_embedding,
    feed_forward,
    linear,
    norm,
    resnet,
)

Recipe = Mapping[str, Any]

CLASSES = 91
"""Outputs of the official models: category ids."""
QUERIES = 300
DEPTHS = {"r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3)}


def conditional_recipes(dino: Recipe, heads: Recipe) -> dict[str, Recipe]:
    """``dino``: its data and optimiser are DETR's, too; ``heads``: of Co-DETR with two of them."""
    conditional = {
        **dino,
        "runner.max_epochs": 50,
        "lr_config.step": [40],
        "samples_per_gpu": 1,
        "images per step": 8,
        "encoder.with_cp": None,  # no such option
        "num_feature_levels": None,  # one map
        "num_query": QUERIES,
        "num_dn_queries": None,
        "noise_scale": None,
        "test_cfg.max_per_img": 100,
        "loss_cls": ("FocalLoss", 2.0),
    }
    boxes = {**conditional, "test_cfg.max_per_img": 300, "loss_cls": ("FocalLoss", 1.0)}
    found: dict[str, Recipe] = {"dab_detr_r50_dc5_3pat_50e_coco": boxes}
    for depth in DEPTHS:
        for name, recipe in (("conditional", conditional), ("dab", boxes), ("dn", boxes)):
            found[f"{name}_detr_{depth}_dc5_50e_coco"] = recipe
            found[f"teach_{name}_detr_{depth}_dc5_50e_coco"] = recipe
    wider = {"samples_per_gpu": 2, "images per step": 16}  # our choice
    schedule = {"runner.max_epochs": 36, "lr_config.step": [30]}
    for name, recipe in (("conditional", conditional), ("dab", boxes)):
        found[f"co_{name}_detr_r50_c5_3x_coco"] = {**recipe, **heads, **schedule, **wider}
    return found


def conditional_parameters() -> dict[str, tuple[int, int]]:
    """Experiment: number of classes, number of parameters (frozen norms among them)."""
    found = {"dab_detr_r50_dc5_3pat_50e_coco": dab("r50") + 3 * DIM}
    for depth in DEPTHS:
        labels = (CLASSES + 1) * (DIM - 1)
        for name, count in (
            ("conditional", conditional(depth)),
            ("dab", dab(depth)),
            ("dn", dab(depth) + labels),
        ):
            found[f"{name}_detr_{depth}_dc5_50e_coco"] = count
            found[f"teach_{name}_detr_{depth}_dc5_50e_coco"] = count
    rest = auxiliary_heads(COCO, 5) + 3 * (conv(DIM, DIM, 3, bias=True) + norm(DIM))
    fewer = (CLASSES - COCO) * (DIM + 1)  # rows of the class embedding
    boxes = 2 * (linear(2 * DIM, DIM) + norm(DIM))
    known = {name: (CLASSES, count) for name, count in found.items()}
    return known | {
        "co_conditional_detr_r50_c5_3x_coco": (
            COCO,
            conditional("r50") - fewer + rest + 2 * feature_embedding(),
        ),
        "co_dab_detr_r50_c5_3x_coco": (COCO, dab("r50") - fewer + rest + boxes),
    }


def perceptron(*widths: int) -> int:
    return sum(linear(a, b) for a, b in pairwise(widths))


def common(depth: str) -> int:
    """Backbone, projection, both stacks of layers, and the shared head."""
    encoder = linear(DIM, 3 * DIM) + linear(DIM, DIM) + feed_forward(2048) + 2 * norm(DIM)
    # query, key (content and position each), value and output; in cross-attention a sine, too
    attention = 6 * linear(DIM, DIM)
    decoder = 2 * attention + feed_forward(2048) + 3 * norm(DIM)
    further = linear(DIM, DIM)  # the first layer's projection of positions
    layers = LAYERS * (encoder + decoder) + further + norm(DIM) + perceptron(DIM, DIM, DIM)
    return resnet(DEPTHS[depth]) + conv(2048, DIM, 1, bias=True) + layers + branch(CLASSES)


def conditional(depth: str) -> int:
    return common(depth) + QUERIES * DIM + perceptron(DIM, DIM, 2)


def dab(depth: str) -> int:
    embed = perceptron(2 * DIM, DIM, DIM) + perceptron(DIM, DIM, 2) + perceptron(DIM, DIM, DIM)
    return common(depth) + QUERIES * 4 + embed + 2 * LAYERS  # one slope in each layer
