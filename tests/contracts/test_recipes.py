"""Every experiment's resolved values against the official configuration of its name.

``OFFICIAL`` is transcribed by hand from those files (Sense-X/Co-DETR, projects/configs; mmdetection
for Deformable DETR; IDEA-Research/DINO), in their inheritance and under their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from conditional_tables import conditional_recipes
from h_detr_tables import h_detr_recipes
from hydra.utils import instantiate
from ms_detr_tables import ms_detr_recipes
from omegaconf import DictConfig, OmegaConf
from tiny import composed, published
from token_tables import token_recipes

SHORTS_800 = list(range(480, 801, 32))
SHORTS_1024 = list(range(480, 1025, 32))
SHORTS_1536 = list(range(480, 1537, 32))

Recipe = Mapping[str, Any]

CO_DINO_R50: Recipe = {
    "optimizer.lr": 2e-4,
    "optimizer.weight_decay": 1e-4,
    "custom_keys.lr_mult": {"backbone": 0.1},
    "grad_clip.max_norm": 0.1,
    "runner.max_epochs": 12,
    "lr_config.step": [11],
    "min_lr": None,
    "lr_config.warmup_iters": 0,
    "samples_per_gpu": 2,
    "images per step": 16,
    "backbone.drop_path_rate": None,
    "backbone.use_checkpoint": None,
    "encoder.num_layers": 6,
    "encoder.with_cp": 4,
    "num_feature_levels": 5,
    "num_query": 900,
    "num_dn_queries": 100,
    "noise_scale": {"label": 0.5, "box": 1.0},
    "test_cfg.max_per_img": 300,
    "test_cfg.nms.iou_threshold": 0.8,
    "test_cfg.nms.before": 900,  # num_query, in the code
    "rcnn.max_per_img": 100,
    "rpn.test": (1000, 1000, 0.7),
    "rcnn.target_stds": [0.1, 0.1, 0.2, 0.2],
    "dataset": "MmdetFilter",  # which ground truth it loads
    "Resize.backend": "cv2",
    "Resize.img_scale": (SHORTS_800, 1333),
    "Resize.img_scale before the crop": ([400, 500, 600], 4200),
    "RandomCrop.crop_size": [384, 600],
    "RandomFlip.flip_ratio": 0.5,
    "Pad.size_divisor": 1,
    "test_pipeline.img_scale": (800, 1333),
    "canvas": None,
    "CopyPaste.max_num_pasted": None,
    "oversample_thr": None,
    "loss_cls": ("QualityFocalLoss", 1.0),
    "loss_bbox, loss_iou": (5.0, 2.0),
    "ema momentum": None,
    "layer_decay_rate": None,
    "num_co_heads": 2,
    "loss_mask.loss_weight": None,
}


def lsj(canvas: int) -> Recipe:
    """``with_attn_mask=False`` and its pipelines."""
    return {
        "Resize.img_scale": ([0.1, 2.0], canvas),
        "Resize.img_scale before the crop": None,
        "RandomCrop.crop_size": [canvas, canvas],
        "test_pipeline.img_scale": (canvas, canvas),
        "canvas": canvas,
        "CopyPaste.max_num_pasted": 100,
    }


def epochs(count: int, *step: int) -> Recipe:
    return {"runner.max_epochs": count, "lr_config.step": list(step)}


def swin(drop_path: float, cp: bool = False) -> Recipe:
    return {"backbone.drop_path_rate": drop_path, "backbone.use_checkpoint": cp}


LVIS: Recipe = {"oversample_thr": 1e-3}
SWIN_L = {"encoder.with_cp": 6, "samples_per_gpu": 1}
FROM_O365: Recipe = {
    "optimizer.lr": 1e-4,
    "num_dn_queries": 500,
    "noise_scale": {"label": 0.5, "box": 0.4},
    **epochs(16, 8),
}
VIT_L: Recipe = {
    "optimizer.lr": 5e-5,
    "lr_config.warmup_iters": 500,
    "samples_per_gpu": 1,
    "images per step": 64,
    "backbone.use_checkpoint": True,
    "encoder.with_cp": 6,
    "num_dn_queries": 300,
    "noise_scale": {"label": 0.5, "box": 0.4},
    "test_cfg.max_per_img": 1000,
    "rpn.test": (8000, 2000, 0.9),
    "rcnn.max_per_img": 1000,
}

CO_DEFORMABLE_R50: Recipe = {
    **CO_DINO_R50,
    # reference_points is in the file too, but no parameter of a two-stage model has that name
    "custom_keys.lr_mult": {"backbone": 0.1, "sampling_offsets": 0.1},
    "encoder.with_cp": 0,
    "num_feature_levels": 4,
    "num_query": 300,
    "num_dn_queries": None,
    "noise_scale": None,
    "test_cfg.max_per_img": 100,
    "test_cfg.nms.iou_threshold": None,
    "test_cfg.nms.before": None,
    "loss_cls": ("FocalLoss", 2.0),
}
SWIN_WD: Recipe = {"optimizer.weight_decay": 0.05}
NO_HEADS: Recipe = {
    "num_co_heads": 0,
    "rcnn.max_per_img": None,
    "rpn.test": None,
    "rcnn.target_stds": None,
}
DETR_DATA: Recipe = {"dataset": "DetrFilter", "Resize.backend": "pillow"}
"""Of the repositories that load data as DETR does."""
DEFORMABLE: Recipe = {
    **CO_DEFORMABLE_R50,
    **NO_HEADS,
    "custom_keys.lr_mult": {"backbone": 0.1, "sampling_offsets": 0.1, "reference_points": 0.1},
    "images per step": 32,
}
DINO: Recipe = {
    **CO_DINO_R50,
    **NO_HEADS,
    **DETR_DATA,
    "optimizer.lr": 1e-4,
    "encoder.with_cp": 0,
    "test_cfg.nms.iou_threshold": None,
    "test_cfg.nms.before": None,
    "loss_cls": ("FocalLoss", 1.0),
}


def o365(epoch_count: int, drop: int) -> Recipe:
    """The paper's pre-training; where the rate drops is our choice."""
    return {
        "optimizer.lr": 2.5e-4,
        "samples_per_gpu": 4,
        "images per step": 224,
        "Resize.img_scale": (SHORTS_1024, 1280),
        "test_pipeline.img_scale": (1024, 1280),
        **epochs(epoch_count, drop),
    }


def table() -> dict[str, Recipe]:
    found: dict[str, Recipe] = {"r50_1x_coco": CO_DINO_R50}
    found["lsj_r50_1x_coco"] = {**CO_DINO_R50, **lsj(1024)}
    found["lsj_r50_3x_coco"] = {**found["lsj_r50_1x_coco"], **epochs(36, 30)}
    nine = {**found["lsj_r50_1x_coco"], "encoder.num_layers": 9, "encoder.with_cp": 9}
    found["9encoder_lsj_r50_1x_coco"] = nine
    found["9encoder_lsj_r50_3x_coco"] = {**nine, **epochs(36, 30)}

    large = {**CO_DINO_R50, **SWIN_L}
    found["swin_large_1x_coco"] = {**large, **swin(0.3)}
    found["swin_large_2x_coco"] = {**large, **swin(0.5), **epochs(24, 20)}
    found["swin_large_3x_coco"] = {**large, **swin(0.6), **epochs(36, 30)}
    found["lsj_swin_large_1x_coco"] = {**large, **swin(0.3), **lsj(1280)}
    found["lsj_swin_large_2x_coco"] = {**large, **swin(0.5), **lsj(1280), **epochs(24, 20)}
    found["lsj_swin_large_3x_coco"] = {**large, **swin(0.5), **lsj(1280), **epochs(36, 30)}
    wide = {
        "Resize.img_scale": (SHORTS_1536, 2048),
        "test_pipeline.img_scale": (1280, 2048),
        "Pad.size_divisor": 32,
    }
    tococo = {**large, **swin(0.3, cp=True), **FROM_O365, **wide}
    found["swin_large_16e_o365tococo"] = tococo
    found["swin_large_22e_o365"] = {**tococo, **o365(22, 18)}

    found["r50_1x_lvis"] = {**CO_DINO_R50, **LVIS}
    found["lsj_r50_1x_lvis"] = {**CO_DINO_R50, **LVIS, **lsj(1024)}
    lvis = {**large, **LVIS, **swin(0.3), **lsj(1280), **epochs(36, 30)}
    found["lsj_swin_large_3x_lvis"] = found["swin_large_3x_lvis"] = lvis
    thousand = {"test_cfg.max_per_img": 1000, "rcnn.max_per_img": 1000}
    found["swin_large_16e_o365tolvis"] = {**lvis, **FROM_O365, **lsj(1536), **thousand}

    found["vit_large_coco"] = {
        **CO_DINO_R50,
        **VIT_L,
        **wide,
        **epochs(12, 7),
        "optimizer.weight_decay": 0.01,
        "custom_keys.lr_mult": {},
        "backbone.drop_path_rate": 0.4,
        "num_query": 1500,
        "test_cfg.nms.before": 1500,
        "rcnn.target_stds": [0.05, 0.05, 0.1, 0.1],
        "Resize.img_scale": (SHORTS_1536, 2400),
        "ema momentum": 1e-4,
        "layer_decay_rate": (0.8, 24),
    }
    found["vit_large_26e_o365"] = {**found["vit_large_coco"], **o365(26, 20)}
    found["lsj_vit_large_lvis"] = {
        **CO_DINO_R50,
        **VIT_L,
        **LVIS,
        **lsj(1536),
        **epochs(16, 9, 15),
        "optimizer.weight_decay": 0.05,
        "grad_clip.max_norm": None,
        "backbone.drop_path_rate": 0.3,
    }
    masked = {name: f"{name}_instance" for name in ("vit_large_coco", "lsj_vit_large_lvis")}
    weights = {"vit_large_coco": 1.33, "lsj_vit_large_lvis": 1.0}
    for name, instance in masked.items():
        found[instance] = {**found[name], "loss_mask.loss_weight": weights[name]}
    found = {f"co_dino_5scale_{name}": recipe for name, recipe in found.items()}

    found["co_deformable_detr_r50_1x_coco"] = CO_DEFORMABLE_R50
    found["co_deformable_detr_mask_r50_1x_coco"] = {
        **CO_DEFORMABLE_R50,
        "loss_mask.loss_weight": 1.0,
    }
    for size, one, three in (("tiny", 0.2, 0.3), ("small", 0.2, 0.4), ("base", 0.2, 0.4)):
        name = f"co_deformable_detr_swin_{size}"
        short = {**CO_DEFORMABLE_R50, **SWIN_WD, **swin(one)}
        found[f"{name}_1x_coco"] = short
        found[f"{name}_3x_coco"] = {**short, **swin(three), **epochs(36, 30)}
    short = {**CO_DEFORMABLE_R50, **SWIN_WD, **swin(0.3)}
    found["co_deformable_detr_swin_large_1x_coco"] = short
    found["co_deformable_detr_swin_large_900q_3x_coco"] = {
        **short,
        **swin(0.6),
        **epochs(36, 30),
        "num_query": 900,
        "test_cfg.max_per_img": 300,
    }

    found["deformable_detr_pp_r50_1x_coco"] = {**CO_DEFORMABLE_R50, **NO_HEADS}
    found["deformable_detr_r50_50e_coco"] = {**DEFORMABLE, **epochs(50, 40)}
    found["deformable_detr_r50_1x_coco"] = DEFORMABLE
    found["deformable_detr_r50_3x_coco"] = {**DEFORMABLE, **epochs(36, 30)}
    found["dino_4scale_r50_1x_coco"] = {**DINO, "num_feature_levels": 4}
    found["dino_5scale_r50_1x_coco"] = {**DINO, "samples_per_gpu": 1}
    two_stage = {**CO_DEFORMABLE_R50, **NO_HEADS, **DETR_DATA}
    found |= ms_detr_recipes(two_stage) | token_recipes(two_stage)
    heads = {key: CO_DEFORMABLE_R50[key] for key in NO_HEADS}
    found |= conditional_recipes(found["dino_4scale_r50_1x_coco"], heads)
    for schedule in ("1x", "3x"):
        baseline = found[f"deformable_detr_r50_{schedule}_coco"]
        found[f"co_deformable_detr_one_stage_r50_{schedule}_coco"] = {**baseline, **heads}
    return found | h_detr_recipes(two_stage, found["dino_4scale_r50_1x_coco"])


OFFICIAL = table()


def lr_mults(cfg: DictConfig) -> dict[str, float]:
    rules = cfg.optimizer.rules.items()
    return {name: rule.lr_mult for name, rule in rules if rule and "lr_mult" in rule}


def layer_decay(cfg: DictConfig) -> tuple[float, int] | None:
    rule = cfg.optimizer.rules.get("blocks")
    return (rule.lr_decay, rule.depth) if rule else None


def resize_backend(cfg: DictConfig) -> str:
    kinds = {cfg.augmentation[part].get("antialias", False) for part in ("train", "eval")}
    (antialias,) = kinds
    return "pillow" if antialias else "cv2"


def resize(cfg: DictConfig) -> tuple[list[float], int]:
    train = cfg.augmentation.train
    if "canvas" in train:
        return list(train.ratio), train.canvas
    return list(train.shorts), train.long


def resize_before_crop(cfg: DictConfig) -> tuple[list[int], int] | None:
    train = cfg.augmentation.train
    return None if "canvas" in train else (list(train.crop_shorts), train.crop_long)


def crop(cfg: DictConfig) -> list[int]:
    train = cfg.augmentation.train
    return [train.canvas] * 2 if "canvas" in train else list(train.crop_range)


def eval_size(cfg: DictConfig) -> tuple[int, int]:
    part = cfg.augmentation.eval
    return (part.canvas, part.canvas) if "canvas" in part else (part.short, part.long)


def drop_path(cfg: DictConfig) -> float | None:
    trunk = cfg.model.backbone
    return trunk.body.drop_path if "body" in trunk else trunk.get("drop_path_rate")


def trunk_checkpointed(cfg: DictConfig) -> bool | None:
    """None where the backbone has no such option."""
    trunk = cfg.model.backbone
    if "body" in trunk:
        return trunk.body.checkpointed == trunk.body.depth
    value = trunk.get("checkpointed")
    return None if value is None else value is True


def classification(cfg: DictConfig) -> tuple[str, float]:
    names = {
        "QualityClassification": "QualityFocalLoss",
        "FocalClassification": "FocalLoss",
        "SoftmaxClassification": "CrossEntropyLoss",
    }
    criterion = cfg.supervision.criterion
    return names[criterion.classification._target_.rpartition(".")[2]], criterion.cls


def rpn_test(cfg: DictConfig) -> tuple[int, int, float] | None:
    if "rcnn" not in cfg.aux_heads:
        return None
    part = cfg.aux_heads.rcnn.rpn.inference_selection
    return part.per_level, part.limit, part.iou


def region_stds(cfg: DictConfig) -> list[float] | None:
    if "rcnn" not in cfg.aux_heads:
        return None
    coder = cfg.aux_heads.rcnn.get("coder")
    return list(coder.stds) if coder else [0.1, 0.1, 0.2, 0.2]  # the default of RcnnHead


def mask_weight(cfg: DictConfig) -> float | None:
    """Of the detector's mask head, or of the region head's."""
    part = cfg.scheme.get("masks") or cfg.aux_heads.get("rcnn", {}).get("mask_head")
    return part.weight if part else None


def denoising(cfg: DictConfig, *keys: str) -> dict[str, float] | None:
    part = cfg.scheme.get("denoising")
    return {key: part[f"{key}_noise"] for key in keys} if part else None


READ: dict[str, Callable[[DictConfig], Any]] = {
    "optimizer.lr": lambda c: c.optimizer.lr,
    "optimizer.weight_decay": lambda c: c.optimizer.weight_decay,
    "custom_keys.lr_mult": lr_mults,
    "grad_clip.max_norm": lambda c: c.trainer.gradient_clip_val,
    "runner.max_epochs": lambda c: c.trainer.max_epochs,
    "lr_config.step": lambda c: list(c.schedule.get("milestones", [])),
    "min_lr": lambda c: c.optimizer.lr * c.schedule.final if "final" in c.schedule else None,
    "lr_config.warmup_iters": lambda c: c.schedule.warmup_steps,
    "samples_per_gpu": lambda c: c.data.batch_size,
    "images per step": lambda c: c.trainer.effective_batch,
    "backbone.drop_path_rate": drop_path,
    "backbone.use_checkpoint": trunk_checkpointed,
    "encoder.num_layers": lambda c: c.model.encoder.get("num_layers"),
    "encoder.with_cp": lambda c: c.model.encoder.get("checkpointed"),
    "num_feature_levels": lambda c: c.model.encoder.get("levels"),
    "num_query": lambda c: c.model.num_queries,
    "num_dn_queries": lambda c: c.scheme.denoising.num_queries if "denoising" in c.scheme else None,
    "noise_scale": lambda c: denoising(c, "label", "box"),
    "test_cfg.max_per_img": lambda c: c.evaluation.postprocess.max_detections,
    "test_cfg.nms.iou_threshold": lambda c: (c.evaluation.postprocess.nms or {}).get(
        "iou_threshold"
    ),
    "test_cfg.nms.before": lambda c: c.evaluation.postprocess.pre_nms,
    "rcnn.max_per_img": lambda c: c.aux_heads.rcnn.nms.limit if "rcnn" in c.aux_heads else None,
    "rpn.test": rpn_test,
    "rcnn.target_stds": region_stds,
    "dataset": lambda c: c.data.ground_truth._target_.rpartition(".")[2],
    "Resize.backend": resize_backend,
    "Resize.img_scale": resize,
    "Resize.img_scale before the crop": resize_before_crop,
    "RandomCrop.crop_size": crop,
    "RandomFlip.flip_ratio": lambda c: c.augmentation.train.flip,
    "Pad.size_divisor": lambda c: c.data.size_divisor,
    "test_pipeline.img_scale": eval_size,
    "canvas": lambda c: c.augmentation.eval.get("canvas"),
    "CopyPaste.max_num_pasted": lambda c: c.data.mix.max_pasted if c.data.mix else None,
    "oversample_thr": lambda c: c.data.repeat.threshold if c.data.repeat else None,
    "loss_cls": classification,
    "loss_bbox, loss_iou": lambda c: (
        c.supervision.criterion.l1,
        c.supervision.criterion.giou,
    ),
    "ema momentum": lambda c: 1 - c.callbacks.ema.decay if c.callbacks.ema else None,
    "layer_decay_rate": layer_decay,
    "num_co_heads": lambda c: len(c.aux_heads),
    "loss_mask.loss_weight": mask_weight,
}


def test_every_experiment_is_in_the_table() -> None:
    assert sorted(OFFICIAL) == published()
    assert all(set(recipe) == set(READ) for recipe in OFFICIAL.values())


@pytest.mark.parametrize("experiment", sorted(OFFICIAL))
def test_resolved_values_are_the_official_ones(experiment: str) -> None:
    cfg = composed((f"experiment={experiment}", "data.root=nowhere"))
    OmegaConf.resolve(cfg.data)
    ours = {name: read(cfg) for name, read in READ.items()}
    assert ours == {
        name: pytest.approx(value) if isinstance(value, float) else value
        for name, value in OFFICIAL[experiment].items()
    }


@pytest.mark.parametrize("schedule", ["1x", "2x", "3x", "16e", "50e"])
def test_schedules_drop_once_without_warm_up(schedule: str) -> None:
    part = composed((f"schedule={schedule}",)).schedule
    expected = {"1x": (12, 11), "2x": (24, 20), "3x": (36, 30), "16e": (16, 8), "50e": (50, 40)}
    assert (part.epochs, *part.milestones) == expected[schedule]
    assert (part.gamma, part.warmup_steps) == (0.1, 0)


@pytest.mark.parametrize("epochs", [50, 150])
def test_cosines_change_after_every_epoch_without_warm_up(epochs: int) -> None:
    part = composed((f"schedule=cosine_{epochs}e",)).schedule
    assert (part.epochs, part.by_epoch, part.warmup_steps) == (epochs, True, 0)


@pytest.mark.parametrize("experiment", ["yolos_s_150e_coco", "vidt_swin_small_50e_coco"])
def test_a_cosines_first_two_epochs_have_the_full_rate(experiment: str) -> None:
    """After epoch e the official code sets the rate of e, with which e + 1 is trained."""
    cfg = composed((f"experiment={experiment}", "data.root=nowhere"))
    lr, epochs, least = cfg.optimizer.lr, cfg.schedule.epochs, OFFICIAL[experiment]["min_lr"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = instantiate(cfg.schedule)(optimizer, 3)
    found = []
    for _ in range(3 * epochs):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    expected = [lr] + [
        least + (lr - least) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for epoch in range(epochs - 1)
    ]
    assert found[::3] == pytest.approx(expected)
    assert found[::3] == found[2::3]


@pytest.mark.parametrize("experiment", published())
def test_the_batch_is_reached_on_any_usual_number_of_devices(experiment: str) -> None:
    from codetr.training.trainer import accumulation

    cfg = composed((f"experiment={experiment}", "data.root=nowhere"))
    for devices in (1, 2, 4, 8):
        steps = accumulation(cfg.trainer.effective_batch, cfg.data.batch_size, devices)
        assert steps * cfg.data.batch_size * devices == OFFICIAL[experiment]["images per step"]


@pytest.mark.parametrize("experiment", published())
def test_numbers_are_float32_and_images_are_evaluated_one_by_one(experiment: str) -> None:
    cfg = composed((f"experiment={experiment}", "data.root=nowhere", "trainer=gpu"))
    assert (cfg.trainer.precision, cfg.trainer.tf32) == ("32-true", False)
    assert (cfg.data.eval_batch_size, cfg.data.eval_batches) == (1, "equal_size")
