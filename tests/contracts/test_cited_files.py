"""The files that experiments cite exist under these names in the repositories they name.

``FILES`` has those that an experiment reproduces. They were read from listings of the repositories
that cover their whole history, so a name in it may have been another one at some time. Two were
not in the listings: lsj_swin_large_16e_o365tolvis, which is the name in Co-DETR's README (at
2665352) and in copies of the repository, where the listing has an earlier one without lsj; and
DINO_5scale.py, which DINO's own training script names.
"""

from __future__ import annotations

import re
from itertools import product

import pytest
from tiny import CONF, published

from tools.docs.recipe_table import publications

CO_DINO = [
    "9encoder_lsj_r50_1x_coco",
    "9encoder_lsj_r50_3x_coco",
    "lsj_r50_1x_coco",
    "lsj_r50_1x_lvis",
    "lsj_r50_3x_coco",
    "lsj_swin_large_16e_o365tolvis",
    "lsj_swin_large_1x_coco",
    "lsj_swin_large_2x_coco",
    "lsj_swin_large_3x_coco",
    "lsj_swin_large_3x_lvis",
    "r50_1x_coco",
    "r50_1x_lvis",
    "swin_large_16e_o365tococo",
    "swin_large_1x_coco",
    "swin_large_2x_coco",
    "swin_large_3x_coco",
]
CO_DEFORMABLE = [
    "mask_r50_1x",
    "r50_1x",
    "swin_base_1x",
    "swin_base_3x",
    "swin_large_1x",
    "swin_large_900q_3x",
    "swin_small_1x",
    "swin_small_3x",
    "swin_tiny_1x",
    "swin_tiny_3x",
]
TWO_STAGE = "deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage.sh"
HYBRID = "hybrid_branch_lambda1_group6"
TRICKS = "dp0_mqs_lft_"


def _h_detr() -> set[str]:
    """The two-stage scripts with our backbones, of 12 and 36 epochs (there are others)."""
    base, hybrid = "deformable-detr-baseline", "deformable-detr-hybrid-branch"
    found = set()
    for epochs, tricks in product(("12eps", "36eps"), ("", TRICKS)):
        deep = "drop_path0.5_" if epochs == "36eps" else ""
        found |= {
            f"{base}/{epochs}/r50_{tricks}{TWO_STAGE}",
            f"{base}/{epochs}/swin/swin_tiny_{tricks}{TWO_STAGE}",
            f"{base}/{epochs}/swin/{deep}swin_large_{tricks}{TWO_STAGE}",
            f"{hybrid}/{epochs}/r50_{HYBRID}_t1500_{tricks}{TWO_STAGE}",
        }
    for epochs, deep in (("12eps", ""), ("36eps", "drop_path0.5_")):
        swin = f"{hybrid}/{epochs}/swin"
        names = ("swin_tiny", "swin_small", f"{deep}swin_large", "decay0.05_swin_tiny")
        found |= {f"{swin}/{n}_{HYBRID}_t1500_{TRICKS}{TWO_STAGE}" for n in names}
        found.add(f"{swin}/{deep}swin_large_{HYBRID}_t1500_n900_{TRICKS}{TWO_STAGE}")
    wide = f"decay0.05_drop_path0.5_swin_large_{HYBRID}_t1500_n900_{TRICKS}{TWO_STAGE}"
    found.add(f"{hybrid}/36eps/swin/{wide}")
    found.add(f"{hybrid}/12eps/r50_{HYBRID}_t600_{TRICKS}{TWO_STAGE}")
    return {f"configs/two_stage/{name}" for name in found}


FILES = {
    "Sense-X/Co-DETR": {
        *(f"projects/configs/co_dino/co_dino_5scale_{name}.py" for name in CO_DINO),
        *(
            f"projects/configs/co_deformable_detr/co_deformable_detr_{n}_coco.py"
            for n in CO_DEFORMABLE
        ),
        "projects/configs/co_dino_vit/co_dino_5scale_lsj_vit_large_lvis.py",
        "projects/configs/co_dino_vit/co_dino_5scale_lsj_vit_large_lvis_instance.py",
        "projects/configs/co_dino_vit/co_dino_5scale_vit_large_coco.py",
        "projects/configs/co_dino_vit/co_dino_5scale_vit_large_coco_instance.py",
    },
    "HDETR/H-Deformable-DETR": _h_detr(),
    "Atten4Vis/MS-DETR": {
        "scripts/train_ms_detr_300.sh",
        "scripts/train_ms_detr_pp_300.sh",
        "scripts/train_ms_detr_pp_900.sh",
    },
    "IDEA-Research/DINO": {
        "config/DINO/DINO_4scale.py",
        "config/DINO/DINO_5scale.py",
        "scripts/DINO_train_dist.sh",
        "scripts/DINO_train_submitit_5scale.sh",
    },
    "mmdetection": {"configs/deformable_detr/deformable_detr_r50_16x2_50e_coco.py"},
}
FORMER = {
    "projects/configs/co_dino/co_dino_5scale_swin_large_3x_lvis.py (commit 8d693d5)",
}
"""Removed or renamed since: cited with the commit that has them."""
CITED = re.compile(r"[\w./-]+/[\w./-]+\.(?:py|sh)\b(?: \(commit \w+\))?")
SOURCES = {one.name: one for one in publications(CONF)}


@pytest.mark.parametrize("experiment", published())
def test_cited_files_exist(experiment: str) -> None:
    one = SOURCES[experiment]
    for name in CITED.findall(one.source):
        assert name in FILES[one.origin] | FORMER


def test_every_released_configuration_is_cited() -> None:
    """Nothing that the lists above name was forgotten, and the pattern finds what is cited."""
    cited = {name for one in SOURCES.values() for name in CITED.findall(one.source)}
    assert cited == set().union(*FILES.values(), FORMER)
