from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from codetr.checkpoints.coco import COCO
from codetr.checkpoints.official import CLASS_EMBEDDING
from codetr.checkpoints.official_file import read_official_file
from codetr.errors import UserError

NAMES = ("cat", "traffic light")


def state(count: int = 2) -> dict[str, Tensor]:
    return {CLASS_EMBEDDING: torch.randn(count, 4), "backbone.conv1.weight": torch.randn(3)}


def written(folder: Path, content: object) -> Path:
    torch.save(content, folder / "a.pth")
    return folder / "a.pth"


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": NAMES, "exp_name": "co_dino_x.py"},
        {"CLASSES": list(NAMES), "exp_name": "co_dino_x.py"},
        {"dataset_meta": {"classes": NAMES}, "exp_name": "co_dino_x.py"},
        {"dataset_meta": {"CLASSES": NAMES, "palette": [(1, 2, 3)]}, "exp_name": "co_dino_x.py"},
    ],
)
def test_class_names_are_kept(tmp_path: Path, meta: dict) -> None:
    weights = state()
    file = read_official_file(written(tmp_path, {"meta": meta, "state_dict": weights}))
    assert file.classes.names == NAMES
    assert (file.config, file.remarks) == ("co_dino_x", ())
    assert file.weights.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(file.weights[name], value)


@pytest.mark.parametrize("meta", [{}, {"CLASSES": NAMES}, {"CLASSES": None}])
def test_eighty_classes_without_names_are_those_of_coco(tmp_path: Path, meta: dict) -> None:
    file = read_official_file(written(tmp_path, {"meta": meta, "state_dict": state(80)}))
    assert file.classes == COCO
    assert "took COCO's" in file.remarks[0]


def test_coco_has_its_category_ids() -> None:
    ids = dict(zip(COCO.names, COCO.category_ids, strict=True))
    known = {"person": 1, "stop sign": 13, "backpack": 27, "tv": 72, "toothbrush": 90}
    assert known.items() <= ids.items()
    assert len(COCO) == 80


def test_other_classes_without_names_are_numbered(tmp_path: Path) -> None:
    file = read_official_file(written(tmp_path, state(3)))
    assert file.classes.names == ("class 1", "class 2", "class 3")
    assert "numbered" in file.remarks[0]


def averaged(style: str, plain: dict[str, Tensor], other: dict[str, Tensor]) -> dict:
    if style == "2.x":
        flat = {"ema_" + name.replace(".", "_"): value for name, value in other.items()}
        return {"meta": {"CLASSES": NAMES}, "state_dict": plain | flat}
    beside = OrderedDict({f"module.{name}": value for name, value in other.items()})
    beside["steps"] = torch.tensor(7)
    return {"meta": {"CLASSES": NAMES}, "state_dict": plain, "ema_state_dict": beside}


@pytest.mark.parametrize("style", ["2.x", "3.x"])
def test_of_two_sets_the_plain_one_is_what_official_code_evaluates(
    tmp_path: Path, style: str
) -> None:
    plain, other = state(), state()
    path = written(tmp_path, averaged(style, plain, other))
    file = read_official_file(path)
    assert file.weights.keys() == plain.keys()
    assert all(torch.equal(file.weights[name], plain[name]) for name in plain)
    assert len(file.other) == 2
    assert "two sets of weights: took the plain names" in file.remarks[0]
    file = read_official_file(path, "ema")
    assert file.weights.keys() == plain.keys()
    assert all(torch.equal(file.weights[name], other[name]) for name in plain)
    assert "took the EMA names" in file.remarks[0]


def test_the_other_set_must_be_there_to_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a single set of weights"):
        read_official_file(written(tmp_path, {"state_dict": state()}), "ema")


def test_prefix_of_parallel_training_goes(tmp_path: Path) -> None:
    weights = {f"module.{name}": value for name, value in state().items()}
    content = {"meta": {"CLASSES": NAMES}, "state_dict": weights}
    file = read_official_file(written(tmp_path, content))
    assert file.weights.keys() == state().keys()


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    weights = state()
    save_file(weights, tmp_path / "a.safetensors")
    file = read_official_file(tmp_path / "a.safetensors")
    assert all(torch.equal(file.weights[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "no mapping"),
        ({"state_dict": {"a": torch.ones(1)}}, "names are not those of a supported repository"),
        ({"state_dict": {"a": 3}}, "'a' is not a plain tensor"),
    ],
)
def test_foreign_content_is_one_line(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=rf"a\.pth: .*{message}"):
        read_official_file(written(tmp_path, content))


def test_missing_and_broken_safetensors_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="no such"):
        read_official_file(path)
    path.write_bytes(b"junk")
    with pytest.raises(UserError, match="not a readable safetensors"):
        read_official_file(path)
