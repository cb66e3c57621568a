"""Every official key of the parts of the ViT recipes has its place in ours."""

import re

import pytest
import torch

from codetr.checkpoints.official import RULES, SFP_RULES, VIT_RULES
from codetr.models.backbones import Eva02Backbone
from codetr.models.backbones.eva02 import Eva02Trunk
from codetr.models.necks import SimpleFeaturePyramid
from codetr.supervision.aux_heads.roi_heads import ConvFcBoxHead

BLOCK = (
    "norm1.weight",
    "norm1.bias",
    "attn.q_bias",
    "attn.v_bias",
    "attn.q_proj.weight",
    "attn.k_proj.weight",
    "attn.v_proj.weight",
    "attn.proj.weight",
    "attn.proj.bias",
    "norm2.weight",
    "norm2.bias",
    "mlp.w1.weight",
    "mlp.w1.bias",
    "mlp.w2.weight",
    "mlp.w2.bias",
    "mlp.ffn_ln.weight",
    "mlp.ffn_ln.bias",
    "mlp.w3.weight",
    "mlp.w3.bias",
)
TRUNK = (
    "pos_embed",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "out_norm.weight",
    "out_norm.bias",
)
CONVS = {"p2": (1, 5, 8, 11), "p3": (1, 4, 7), "p4": (0, 3), "p5": (1, 4), "p6": (1, 4, 7)}


def renamed(key: str) -> str:
    for pattern, replacement in (*VIT_RULES, *SFP_RULES, *RULES):
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement).format(head0="rcnn")
    raise AssertionError(f"no rule for {key}")


def test_trunk_keeps_the_official_names() -> None:
    official = {f"backbone.blocks.{i}.{name}" for i in range(24) for name in BLOCK}
    official |= {f"backbone.{name}" for name in TRUNK}
    with torch.device("meta"):
        ours = Eva02Backbone(Eva02Trunk()).state_dict()
    assert {renamed(key) for key in official} == {f"detector.backbone.{name}" for name in ours}


@pytest.mark.parametrize(
    "key",
    [
        "backbone.rope_win.freqs_cos",
        "backbone.rope_glb.freqs_sin",
        "backbone.blocks.13.attn.rope.freqs_cos",
        "ema_backbone_pos_embed",
    ],
)
def test_tables_and_second_sets_of_weights_are_dropped(key: str) -> None:
    assert renamed(key) == ""


def test_neck_finds_its_layers() -> None:
    official = set()
    for level, indices in CONVS.items():
        for index in indices:
            official |= {f"neck.{level}.{index}.weight"}
            official |= {f"neck.{level}.{index + 1}.{name}" for name in ("weight", "bias")}
    with torch.device("meta"):
        ours = SimpleFeaturePyramid((1024,), (16,)).state_dict()
    assert {renamed(key) for key in official} == {f"detector.neck.{name}" for name in ours}


def test_region_head_finds_its_layers() -> None:
    official = {"shared_fcs.0.weight", "shared_fcs.0.bias"}
    official |= {f"fc_{branch}.{name}" for branch in ("cls", "reg") for name in ("weight", "bias")}
    for i in range(4):
        official |= {f"shared_convs.{i}.{n}" for n in ("conv.weight", "gn.weight", "gn.bias")}
    with torch.device("meta"):
        ours = ConvFcBoxHead(num_classes=80, channels=256).state_dict()
    assert {renamed(f"roi_head.0.bbox_head.{key}") for key in official} == {
        f"schemes.collaborative.heads.rcnn.box_head.{name}" for name in ours
    }
    assert ours["reg.weight"].shape == (4, 1024)
    assert ours["fcs.0.weight"].shape == (1024, 256 * 49)
