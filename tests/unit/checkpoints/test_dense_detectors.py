"""Official checkpoints of Conditional DETR, DAB-DETR, DN-DETR and DINO: every key has its place."""

import json
from pathlib import Path

import pytest
import torch
from tiny_official import convert_file
from torch import Tensor

from codetr.checkpoints.coco import COCO
from codetr.checkpoints.conditional_detr import convert_conditional_detr
from codetr.checkpoints.convert import open_checkpoint
from codetr.checkpoints.dialects import dialect_of
from codetr.checkpoints.experiment import build_empty, compose_experiment
from codetr.errors import UserError

KEYS = Path(__file__).parents[2] / "golden"
CASES = {
    "conditional_detr_r50_dc5": "conditional_detr_r50_dc5_50e_coco",
    "dab_detr_r50_dc5": "dab_detr_r50_dc5_50e_coco",
    "dn_detr_r50_dc5": "dn_detr_r50_dc5_50e_coco",
    "dino_4scale_r50": "dino_4scale_r50_1x_coco",
}


def official(case: str) -> dict[str, Tensor]:
    """Numbers under the official names and of the official shapes, shared tensors under all of
    their names; biases of classes and the first column of labels are their rows.
    """
    keys = json.loads((KEYS / case / "keys.json").read_text())
    state = {name: torch.full(tuple(shape), 0.5) for name, shape in keys["keys"]}
    for name, value in state.items():
        if name.endswith("bias") and "class_embed" in name:
            state[name] = torch.arange(len(value), dtype=torch.float32)
    if "label_enc.weight" in state:
        state["label_enc.weight"][:, 0] = torch.arange(92)
    for alias, kept in keys["alias_keys"].items():
        own = {k.removeprefix(kept): v for k, v in state.items() if k.startswith(kept)}
        state |= {alias + rest: value for rest, value in own.items()}
    assert len(state) == keys["total_entries_in_official_state_dict"]
    return state


@pytest.mark.parametrize("case", CASES)
def test_an_official_file_becomes_a_checkpoint_of_80_classes(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": official(case), "epoch": 49}, path)
    content, report = convert_file(path, CASES[case])
    report.require_complete(path)
    assert content.record.classes == COCO
    for name, value in content.weights.items():
        if name.startswith("head.classify.") and name.endswith("bias"):
            assert value.tolist() == list(COCO.category_ids)
    shapes = build_empty(compose_experiment(CASES[case], 80))["detector"].state_dict()
    assert content.weights.keys() == shapes.keys()
    opened = open_checkpoint(f"official:{path}", compose_experiment(CASES[case], 80))
    assert opened.record.classes == COCO
    for table in ("query_denoising", "denoising"):
        labels = opened.state.get(f"schemes.{table}.label_embedding.weight")
        if labels is not None:
            assert labels[:, 0].tolist() == list(COCO.category_ids)
            assert case in ("dn_detr_r50_dc5", "dino_4scale_r50")
    if case == "dn_detr_r50_dc5":
        assert opened.weights["query_init.content.label"][0] == 91  # of no known label


@pytest.mark.parametrize("case", CASES)
def test_unknown_keys_are_told(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(official(case) | {"more.weight": torch.zeros(1)}, path)
    _, report = convert_file(path, CASES[case])
    assert report.unused == ("more.weight",)
    with pytest.raises(UserError, match="1 unused"):
        report.require_complete(path)


def test_each_repository_is_told_by_its_names() -> None:
    for case in CASES:
        dialect = dialect_of(official(case))
        assert dialect is not None
        expected = "DINO" if "dino" in case else "Conditional DETR, DAB-DETR and DN-DETR"
        assert dialect.repository == expected


@pytest.mark.parametrize("case", ["dab_detr_r50_dc5", "dn_detr_r50_dc5"])
def test_patterns_have_a_place(case: str) -> None:
    patterns = torch.rand(3, 256)
    conversion = convert_conditional_detr(
        official(case) | {"transformer.patterns.weight": patterns}
    )
    assert conversion.unused == ()
    cfg = compose_experiment(CASES[case], 91, ["model.num_patterns=3"])
    names = build_empty(cfg)["detector"].state_dict().keys()
    own = {n.removeprefix("detector.") for n in conversion.state if n.startswith("detector.")}
    assert own == names
    (place,) = (n for n in own if n.endswith("patterns"))
    assert torch.equal(conversion.state[f"detector.{place}"], patterns)
