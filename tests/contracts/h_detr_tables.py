"""What H-DETR's and Teach-DETR's repositories say of their experiments, in the words of the tables
of ``test_recipes`` and ``official_shapes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from official_shapes import (
    LAYERS,
    branch,
    channel_mapper,
    deformable_pp,
    deformable_transformer,
    dino,
    resnet50,
    swin,
    widths,
)

Recipe = Mapping[str, Any]

THREE: Recipe = {"runner.max_epochs": 36, "lr_config.step": [30]}
WIDE: Recipe = {"num_query": 900}
DECAY: Recipe = {"optimizer.weight_decay": 0.05}
PADDED: Recipe = {"Pad.size_divisor": 32}


def trunk(drop_path: float) -> Recipe:
    return {"backbone.drop_path_rate": drop_path, "backbone.use_checkpoint": False}


def h_detr_recipes(deformable: Recipe, dino_4scale: Recipe) -> dict[str, Recipe]:
    """``deformable``: two-stage, ResNet-50, 12 epochs, without auxiliary heads."""
    found: dict[str, Recipe] = {}
    for kind in ("two_stage", "tricks"):
        name = f"deformable_detr_{kind}"
        found[f"{name}_r50"] = deformable
        found[f"{name}_swin_tiny"] = found[f"{name}_swin_large"] = {**deformable, **trunk(0.2)}
    for name in ("h_deformable_detr_r50", "h_deformable_detr_no_tricks_r50"):
        found[name] = deformable
    for size in ("tiny", "small", "large"):
        found[f"h_deformable_detr_swin_{size}"] = {**deformable, **trunk(0.2)}
    found["h_deformable_detr_decay005_swin_tiny"] = {**deformable, **trunk(0.2), **DECAY}
    found["h_deformable_detr_swin_large_900q"] = {**deformable, **trunk(0.2), **WIDE}
    deep = {  # of 36 epochs, Swin-L's path drops more often
        name: {**own, **(trunk(0.5) if "large" in name else {}), **THREE}
        for name, own in found.items()
    }
    all_of_them = {f"{name}_1x_coco": own for name, own in found.items()}
    all_of_them |= {f"{name}_3x_coco": own for name, own in deep.items()}
    all_of_them["h_deformable_detr_r50_t600_1x_coco"] = deformable
    wide = all_of_them["h_deformable_detr_swin_large_900q_3x_coco"]
    all_of_them["h_deformable_detr_decay005_swin_large_900q_3x_coco"] = {**wide, **DECAY}
    small = {**deformable, **trunk(0.2), **THREE}
    for kind in ("two_stage", "tricks"):
        all_of_them[f"deformable_detr_{kind}_swin_small_3x_coco"] = small
    all_of_them["dino_4scale_swin_large_3x_coco"] = {**dino_4scale, **trunk(0.2), **THREE}
    return all_of_them | taught(all_of_them)


def taught(students: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """The same students with teachers."""
    names = [
        "h_deformable_detr_r50_3x_coco",
        "h_deformable_detr_r50_t600_1x_coco",
        "h_deformable_detr_swin_small_3x_coco",
        "h_deformable_detr_swin_large_3x_coco",
        "deformable_detr_two_stage_swin_small_3x_coco",
        "deformable_detr_tricks_swin_small_3x_coco",
        "dino_4scale_swin_large_3x_coco",
    ]
    found = {f"teach_{name}": {**students[name], **PADDED} for name in names}
    wide = {**students["h_deformable_detr_swin_large_900q_3x_coco"], **PADDED}
    wide["test_cfg.max_per_img"] = 300
    return found | {"teach_h_deformable_detr_swin_large_900q_3x_coco": wide}


BODIES = {
    "r50": resnet50() + channel_mapper(widths(256, 3), bias=True),
    **{
        f"swin_{size}": swin(dim, (2, 2, depth, 2), heads, 7, 3)
        + channel_mapper(widths(dim, 3), bias=True)
        for size, (dim, depth, heads) in {
            "tiny": (96, 6, 3),
            "small": (96, 18, 3),
            "large": (192, 18, 6),
        }.items()
    },
}


def without_tricks(body: int) -> int:
    """Queries learn nothing of their own."""
    return body + deformable_transformer(queries=0) + (LAYERS + 1) * branch(80)


def h_detr_parameters() -> dict[str, tuple[int, int]]:
    """(classes, parameters) of each experiment, by what its name says."""
    return {name: _parameters(name.removeprefix("teach_")) for name in h_detr_recipes({}, {})}


def _parameters(name: str) -> tuple[int, int]:
    body = next(count for part, count in BODIES.items() if part in name)
    if name.startswith("dino"):
        large = swin(192, (2, 2, 18, 2), 6, 12, 3) + channel_mapper(widths(192, 3), bias=True)
        return 91, dino(large, 4)
    if "two_stage" in name or "no_tricks" in name:
        return 80, without_tricks(body)
    queries = 900 if "900q" in name else 300
    if name.startswith("h_"):
        queries += 600 if "t600" in name else 1500
    return 80, deformable_pp(body, queries=queries)
