"""Official checkpoints of YOLOS and ViDT: every key has its place, and rows are classes."""

import json
from pathlib import Path

import pytest
import torch
from tiny_official import convert_file
from torch import Tensor

from codetr.checkpoints.coco import COCO
from codetr.checkpoints.convert import open_checkpoint
from codetr.checkpoints.dialects import dialect_of
from codetr.checkpoints.experiment import build_empty, compose_experiment
from codetr.checkpoints.official_file import read_official_file
from codetr.checkpoints.vidt import convert_vidt
from codetr.errors import UserError

KEYS = Path(__file__).parents[2] / "golden"
CASES = {"yolos_s": "yolos_s_150e_coco", "vidt_swin_small": "vidt_swin_small_50e_coco"}
CLASS_TENSORS = {"yolos_s": "class_embed.layers.2.bias", "vidt_swin_small": "class_embed.3.bias"}
OURS = {"yolos_s": "head.classify.4.bias", "vidt_swin_small": "head.classify.3.bias"}


def official(case: str) -> dict[str, Tensor]:
    """Numbers under the official names and of the official shapes; biases of classes are their
    rows.
    """
    keys = json.loads((KEYS / case / "keys.json").read_text())["keys"]
    state = {name: torch.full(tuple(shape), 0.5) for name, shape in keys}
    rows = torch.arange(len(state[CLASS_TENSORS[case]]), dtype=torch.float32)
    state[CLASS_TENSORS[case]] = rows
    if case == "vidt_swin_small":  # listed twice, and a table that is computed
        boxes = {k: v for k, v in state.items() if k.startswith("bbox_embed.")}
        state |= {f"transformer.decoder.{k}": v for k, v in boxes.items()}
        index = "backbone.layers.0.blocks.0.attn.relative_position_index"
        state[index] = torch.zeros(49, 49, dtype=torch.int64)
    return state


@pytest.mark.parametrize("case", CASES)
def test_an_official_file_becomes_a_checkpoint_of_80_classes(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": official(case), "epoch": 149}, path)
    content, report = convert_file(path, CASES[case])
    report.require_complete(path)
    assert content.record.classes == COCO
    background = [91] if case == "yolos_s" else []
    assert content.weights[OURS[case]].tolist() == [*COCO.category_ids, *background]
    shapes = build_empty(compose_experiment(CASES[case], 80))["detector"].state_dict()
    assert content.weights.keys() == shapes.keys()
    opened = open_checkpoint(f"official:{path}", compose_experiment(CASES[case], 80))
    assert opened.record.classes == COCO


@pytest.mark.parametrize("case", CASES)
def test_other_classes_are_numbered_and_unknown_keys_told(case: str, tmp_path: Path) -> None:
    state = official(case)
    background = int(case == "yolos_s")
    for name, value in state.items():
        if len(value) == 91 + background:
            state[name] = value[: 3 + background]
    path = tmp_path / "model.pth"
    torch.save(state | {"more.weight": torch.zeros(1)}, path)
    file = read_official_file(path)
    assert file.classes.names == ("class 1", "class 2", "class 3")
    _, report = convert_file(path, CASES[case])
    assert report.unused == ("more.weight",)
    with pytest.raises(UserError, match="1 unused"):
        report.require_complete(path)


def test_what_vidt_never_reads_is_left_out_by_name() -> None:
    conversion = convert_vidt(official("vidt_swin_small"))
    left_out = [k for k in conversion.dropped if not k.startswith("transformer.decoder")]
    assert len(left_out) == 19 + 1  # the computed table
    assert conversion.unused == ()


def test_each_repository_is_told_by_its_names() -> None:
    for case, name in (("yolos_s", "YOLOS"), ("vidt_swin_small", "ViDT")):
        dialect = dialect_of(official(case))
        assert dialect is not None
        assert dialect.repository == name
    assert dialect_of({"a": torch.zeros(1)}) is None
