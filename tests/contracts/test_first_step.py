"""One true training step of whole models on real photographs, made small."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from tiny import composed
from torch import nn

from codetr.loss_terms import total_loss
from codetr.training.losses import training_losses

SMALL = (
    "data.num_workers=0",
    "model.backbone.pretrained=false",
    "model.one_pass=false",
    "supervision.regions.samples=64",
    "supervision.regions.proposals_per_level=500",
    "supervision.regions.proposals=100",
)
SMALL_IMAGES = (
    *SMALL,
    "augmentation.train.shorts=[96]",
    "augmentation.train.long=160",
    "augmentation.train.crop_shorts=[112]",
    "augmentation.train.crop_range=[64,96]",
)
SMALL_CANVAS = (*SMALL, "augmentation.train.canvas=128")
QUICK = [
    "co_dino_5scale_r50_1x_coco",
    "co_deformable_detr_swin_tiny_1x_coco",
    "deformable_detr_r50_1x_coco",
    "dino_4scale_r50_1x_coco",
]
SLOW = [
    "co_dino_5scale_lsj_r50_1x_coco",
    "co_deformable_detr_r50_1x_coco",
    "co_dino_5scale_lsj_r50_3x_coco",
    "co_dino_5scale_lsj_r50_1x_lvis",
    "co_dino_5scale_r50_1x_lvis",
    "co_dino_5scale_9encoder_lsj_r50_1x_coco",
    "co_dino_5scale_9encoder_lsj_r50_3x_coco",
    "co_deformable_detr_swin_tiny_3x_coco",
    "deformable_detr_pp_r50_1x_coco",
    "deformable_detr_r50_3x_coco",
    "deformable_detr_r50_50e_coco",
    "dino_5scale_r50_1x_coco",
    "conditional_detr_r50_dc5_50e_coco",
    "dab_detr_r50_dc5_50e_coco",
    "dab_detr_r50_dc5_3pat_50e_coco",
    "dn_detr_r50_dc5_50e_coco",
    "ms_detr_r50_300q_1x_coco",
    "ms_detr_pp_r50_300q_1x_coco",
    "ms_detr_pp_r50_900q_1x_coco",
    "yolos_s_150e_coco",
    "vidt_swin_small_50e_coco",
]


@pytest.mark.parametrize(
    "experiment", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_one_step_moves_every_trainable_parameter(experiment: str, shared: Path) -> None:
    small = SMALL_CANVAS if "lsj" in experiment else SMALL_IMAGES
    if "yolos" in experiment:  # one group of queries: there is nothing to choose
        small = tuple(o for o in small if not o.startswith("model.one_pass"))
    root = f"data.root={shared / 'data' / 'coco_tiny'}"
    photos = ("data=coco", "evaluation=coco") if "lvis" in experiment else ()
    cfg = composed((f"experiment={experiment}", *photos, root, *small))
    data = instantiate(cfg.data)
    data.setup("fit")
    cfg.num_classes = len(data.classes)
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == cfg.data.batch_size

    detector = instantiate(cfg.model.detector)
    schemes = nn.ModuleDict({name: instantiate(part) for name, part in cfg.scheme.items()})
    model = nn.ModuleDict({"detector": detector, "schemes": schemes}).train()
    optimizer = instantiate(cfg.optimizer, _convert_="all")(model.named_parameters(), 16)
    total = total_loss(training_losses(detector, schemes, batch))
    total.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert total.isfinite()
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in trained.values())
    norm = nn.utils.clip_grad_norm_(trained.values(), cfg.trainer.gradient_clip_val)
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer.step()
    still = [name for name, p in trained.items() if p.grad.any() and torch.equal(p, before[name])]
    assert norm > 0
    assert still == []
