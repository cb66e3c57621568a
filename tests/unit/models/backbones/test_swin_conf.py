"""The Swin files of conf/model/backbone against the official configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from codetr.conf_folder import conf_folder
from codetr.models.backbones.swin_weights import merge_at_the_end
from codetr.models.backbones.weights import match_weights

CONF = conf_folder() / "model" / "backbone"

# projects/configs/co_deformable_detr/co_deformable_detr_swin_*_1x_coco.py,
# projects/configs/co_dino/co_dino_5scale_swin_large_1x_coco.py
OFFICIAL = {
    "tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24], 7, 0.2, "swin_tiny_patch4_window7_224"),
    "small": (96, [2, 2, 18, 2], [3, 6, 12, 24], 7, 0.2, "swin_small_patch4_window7_224"),
    "base": (128, [2, 2, 18, 2], [4, 8, 16, 32], 12, 0.2, "swin_base_patch4_window12_384_22k"),
    "large": (192, [2, 2, 18, 2], [6, 12, 24, 48], 12, 0.3, "swin_large_patch4_window12_384_22k"),
}
LEVELS = {"": [0, 1, 2, 3], "_c3": [1, 2, 3]}


def composed(name: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=["pretrained=false"])


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("size", OFFICIAL)
def test_the_architecture_is_the_official_one(size: str, levels: str) -> None:
    cfg = composed(f"swin_{size}{levels}")
    keys = ("embed_dim", "depths", "heads", "window", "drop_path_rate")
    assert tuple(OmegaConf.to_container(cfg)[key] for key in keys) == OFFICIAL[size][:-1]
    with torch.device("meta"):
        backbone = instantiate(cfg)
    assert list(backbone.channels) == [OFFICIAL[size][0] * 2**i for i in LEVELS[levels]]
    assert list(backbone.strides) == [4 * 2**i for i in LEVELS[levels]]
    assert (backbone.mean, backbone.std) == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@pytest.mark.parametrize("size", OFFICIAL)
def test_the_pretrained_weights_are_the_official_ones_and_fit(size: str) -> None:
    cfg = composed(f"swin_{size}")
    file = Path(timm.get_pretrained_cfg(cfg.name).url).stem
    assert file == OFFICIAL[size][-1]
    with torch.device("meta"):
        theirs = timm.create_model(cfg.name, pretrained=False)
        ours = instantiate(cfg).body
    _, report = match_weights(merge_at_the_end(theirs.state_dict()), ours.state_dict())
    assert all(name.startswith("norm") for name in report.new)
    assert set(report.dropped) == {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}
