"""Every experiment has the official number of parameters."""

import json
import math
import re
from pathlib import Path

import pytest
from conditional_tables import conditional_parameters
from h_detr_tables import h_detr_parameters
from ms_detr_tables import ms_detr_parameters
from official_shapes import (
    EXPECTED,
    FROZEN_NORM_R50,
    FROZEN_NORM_R101,
    channel_mapper,
    deformable_pp,
    resnet50,
    widths,
)
from tiny import composed, published
from token_tables import token_parameters, vidt_unread

from codetr.checkpoints.experiment import build_empty
from codetr.checkpoints.vidt import UNREAD
from tools.docs.parameters import count_parameters, read_official_counts

COUNTS = (
    EXPECTED
    | h_detr_parameters()
    | ms_detr_parameters()
    | token_parameters()
    | conditional_parameters()
)
TRAINING_PARTS = re.compile(r"(teach_)?(co_|h_(?!.*no_tricks)|ms_|dino|dn_).*")
"""Experiments whose schemes have parameters."""
TABLE = Path(__file__).parents[1] / "golden" / "official_parameters.json"


@pytest.mark.parametrize("experiment", published())
def test_experiment_has_the_official_number_of_parameters(experiment: str) -> None:
    classes, parameters = COUNTS[experiment]
    cfg = composed((f"experiment={experiment}", "data.root=nowhere"))
    cfg.num_classes = classes
    count = count_parameters(build_empty(cfg))
    assert count.total == parameters
    norms = {"r50": FROZEN_NORM_R50, "r101": FROZEN_NORM_R101}
    assert count.frozen_norm == next((n for k, n in norms.items() if f"_{k}_" in experiment), 0)
    assert (count.training > 0) == bool(TRAINING_PARTS.match(experiment))


def test_the_documented_table_says_the_same() -> None:
    written = {n: (c.classes, c.parameters) for n, c in read_official_counts(TABLE).items()}
    assert written == COUNTS


@pytest.mark.parametrize(
    ("case", "experiment"),
    [
        ("co_dino_r50", "co_dino_5scale_r50_1x_coco"),
        ("co_deformable_detr_r50", "co_deformable_detr_r50_1x_coco"),
        ("co_deformable_detr_mask_r50", "co_deformable_detr_mask_r50_1x_coco"),
    ],
)
def test_arithmetic_agrees_with_official_state_dicts(
    case: str, experiment: str, shared: Path
) -> None:
    content = json.loads((shared / "golden" / case / "keys.json").read_text())
    buffers = set(content["buffers"])
    shapes = [shape for key, shape, *_ in content["entries"] if key not in buffers]
    assert sum(math.prod(shape) for shape in shapes) == EXPECTED[experiment][1]


def test_vidt_is_the_official_one_less_what_nothing_reads() -> None:
    """docs/quirks.md gives both numbers. The official names and shapes are recorded ones."""
    recorded = json.loads((TABLE.parent / "vidt_swin_small" / "keys.json").read_text())
    shapes = {name: math.prod(shape) for name, shape in recorded["keys"]}
    unread = [name for name in shapes if any(re.fullmatch(p, name) for p in UNREAD)]
    assert len(unread) == 19
    assert sum(shapes[name] for name in unread) == vidt_unread() == 590_272
    cfg = composed(("experiment=vidt_swin_small_50e_coco", "data.root=nowhere"))
    cfg.num_classes = COUNTS["vidt_swin_small_50e_coco"][0]
    ours = count_parameters(build_empty(cfg)).total
    assert ours + 590_272 == recorded["parameters"] == 60_465_061
    quirks = (TABLE.parents[2] / "docs/quirks.md").read_text("utf-8")
    assert "19 tensors (590,272 numbers)" in quirks


def test_arithmetic_agrees_with_detectors_of_other_repositories(shared: Path) -> None:
    """They count frozen norms as buffers. DINO's label table has a row more, which nothing reads,
    and ViDT 19 tensors; H-Deformable-DETR (900 queries, 91 classes) has the shapes of Deformable
    DETR++.
    """
    found = {
        case: json.loads((shared / "golden" / case / "keys.json").read_text())["parameters"]
        for case in (
            "dino_4scale_r50",
            "teach_detr_h_deformable",
            "yolos_s",
            "vidt_swin_small",
            "conditional_detr_r50_dc5",
            "dab_detr_r50_dc5",
            "dn_detr_r50_dc5",
        )
    }
    assert COUNTS["yolos_s_150e_coco"][1] == found["yolos_s"] == 30684768
    vidt = COUNTS["vidt_swin_small_50e_coco"][1]
    assert vidt + vidt_unread() == found["vidt_swin_small"] == 60465061
    for name in ("conditional", "dab", "dn"):
        counted = COUNTS[f"{name}_detr_r50_dc5_50e_coco"][1]
        assert counted - FROZEN_NORM_R50 == found[f"{name}_detr_r50_dc5"]
    label_row = 256
    dino = EXPECTED["dino_4scale_r50_1x_coco"][1]
    assert dino - FROZEN_NORM_R50 + label_row == found["dino_4scale_r50"]
    assert EXPECTED["dino_5scale_r50_1x_coco"][1] - FROZEN_NORM_R50 + label_row == 47255806
    trunk = resnet50() + channel_mapper(widths(256, 3), bias=True)
    other = deformable_pp(trunk, classes=91, queries=900) - FROZEN_NORM_R50
    assert other == found["teach_detr_h_deformable"]
