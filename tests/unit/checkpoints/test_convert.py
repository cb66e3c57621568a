"""From official files, of real names and of a tiny model, to checkpoints of ours."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet_swin_names import to_mmdet_swin
from tiny_official import TINY, convert_file, save_official, tiny_config, tiny_model, to_official
from torch import Tensor, nn

from codetr.checkpoints import pickled
from codetr.checkpoints.convert import OFFICIAL, open_checkpoint
from codetr.checkpoints.experiment import compose_experiment
from codetr.checkpoints.files import read_detector_file, write_detector_file
from codetr.checkpoints.official import convert_official
from codetr.checkpoints.transfer import load_weights
from codetr.errors import UserError

EXPERIMENT = "co_dino_5scale_r50_1x_coco"
NAMES = ("cat", "dog", "cow")
FIXTURES = {
    "co_dino_r50": "co_dino_5scale_r50_1x_coco",
    "co_deformable_detr_r50": "co_deformable_detr_r50_1x_coco",
}


@pytest.fixture(scope="module")
def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return tiny_model(len(NAMES))


@pytest.fixture
def official(model: nn.ModuleDict) -> dict[str, Tensor]:
    return to_official(model.state_dict())


def in_mmdet_3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the port."""
    place = "query_head.label_embedding."
    theirs = "query_head.dn_generator.label_embedding."
    return {name.replace(place, theirs): value for name, value in state.items()}


@pytest.mark.parametrize("dialect", ["Sense-X", "mmdet 3"])
def test_every_tensor_finds_its_place(
    tmp_path: Path, model: nn.ModuleDict, official: dict[str, Tensor], dialect: str
) -> None:
    state = official if dialect == "Sense-X" else in_mmdet_3(official)
    path = save_official(tmp_path / "a.pth", state, NAMES)
    content, report = convert_file(path, EXPERIMENT, TINY)
    report.require_complete(path)
    assert not report.unused + report.missing + report.remarks
    assert len(report.used) + len(report.dropped) == len(state)
    assert all(key.endswith("num_batches_tracked") for key in report.dropped)
    assert report.lines()[0].split() == [str(len(report.used)), "used"]
    assert set(report.used) <= {line.split()[1] for line in report.lines() if "->" in line}

    write_detector_file(tmp_path / "a.safetensors", content)
    again = read_detector_file(tmp_path / "a.safetensors")
    assert again.record.classes.names == NAMES
    assert again.record.config["num_classes"] == len(NAMES)
    assert again.record.preprocessing["mean"] == again.record.config["data"]["mean"]
    fresh = tiny_model(len(NAMES))
    load_weights(again, "a", fresh["detector"], again.record.classes, fresh["schemes"])
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(fresh.state_dict()[name], value), name


@pytest.mark.parametrize("style", ["2.x", "3.x"])
def test_a_second_set_of_weights_is_told_and_left(
    tmp_path: Path, official: dict[str, Tensor], style: str
) -> None:
    if style == "2.x":
        second = {"ema_" + k.replace(".", "_"): v + 1 for k, v in official.items()}
        content = {"meta": {"CLASSES": NAMES}, "state_dict": official | second}
    else:
        second = {f"module.{k}": v + 1 for k, v in official.items()} | {"steps": torch.tensor(1)}
        meta = {"dataset_meta": {"classes": NAMES}}
        content = {"meta": meta, "state_dict": official, "ema_state_dict": second}
    torch.save(content, tmp_path / "a.pth")
    plain, report = convert_file(tmp_path / "a.pth", EXPERIMENT, TINY)
    report.require_complete(tmp_path / "a.pth")
    assert sum(key.startswith("ema: ") for key in report.dropped) == len(official)
    name = "head.classify.0.weight"
    assert torch.equal(plain.weights[name], official["query_head.cls_branches.0.weight"])
    other, report = convert_file(tmp_path / "a.pth", EXPERIMENT, TINY, "ema")
    report.require_complete(tmp_path / "a.pth")
    assert torch.equal(other.weights[name], plain.weights[name] + 1)


def test_what_is_left_over_is_listed_and_refused(
    tmp_path: Path, official: dict[str, Tensor]
) -> None:
    del official["neck.convs.0.conv.weight"]
    official["mask_head.conv.weight"] = torch.ones(1)
    official["bbox_head.0.cls_convs.7.conv.weight"] = torch.ones(1)  # a rule, but no place
    official["rpn_head.rpn_conv.bias"] = torch.ones(3)
    path = save_official(tmp_path / "a.pth", official, NAMES)
    content, report = convert_file(path, EXPERIMENT, TINY)
    assert set(report.unused) == {"mask_head.conv.weight", "bbox_head.0.cls_convs.7.conv.weight"}
    assert report.missing == ("detector.neck.maps.0.0.weight",)
    assert list(report.misfits) == ["schemes.collaborative.heads.rcnn.rpn.conv.bias"]
    assert "unused: mask_head.conv.weight" in report.lines()
    assert "missing: detector.neck.maps.0.0.weight" in report.lines()
    with pytest.raises(UserError, match=r"a\.pth: .*2 unused \(mask_head.*1 missing \(det") as got:
        report.require_complete(path)
    assert "\n" not in str(got.value)
    assert "neck.maps.0.0.weight" not in content.weights
    assert "neck.maps.0.1.weight" in content.weights


def test_the_number_of_classes_is_the_files(tmp_path: Path, official: dict[str, Tensor]) -> None:
    path = save_official(tmp_path / "a.pth", official, ("only", "two"))
    content, report = convert_file(path, EXPERIMENT, TINY)
    assert len(content.record.classes) == 3
    assert report.remarks == ("2 class names for 3 classes: numbered them 1 to 3",)
    assert content.record.classes.category_ids == (1, 2, 3)


def test_unknown_experiment_is_one_line(tmp_path: Path, official: dict[str, Tensor]) -> None:
    path = save_official(tmp_path / "a.pth", official, NAMES)
    with pytest.raises(UserError, match=f"nothing: no experiment .*{EXPERIMENT}"):
        convert_file(path, "nothing")
    with pytest.raises(UserError, match=r"model\.widht") as caught:
        convert_file(path, EXPERIMENT, ["model.widht=3"])
    assert "\n" not in str(caught.value)


def test_official_prefix_converts_on_the_fly(
    tmp_path: Path, model: nn.ModuleDict, official: dict[str, Tensor]
) -> None:
    path = save_official(tmp_path / "a.pth", official, NAMES)
    source = f"{OFFICIAL}{path}"
    content = open_checkpoint(source, tiny_config(3, "data.root=x"))
    assert content.record.classes.names == NAMES
    for name, value in content.state.items():
        assert torch.equal(value, model.state_dict()[name])
    with pytest.raises(UserError, match="experiment=NAME"):
        open_checkpoint(source)
    save_official(path, official | {"mask_head.conv.weight": torch.ones(1)}, NAMES)
    with pytest.raises(UserError, match=r"1 unknown keys \(mask_head\.conv\.weight\)"):
        open_checkpoint(source, tiny_config(3, "data.root=x"))


def test_heads_that_are_not_ours_are_left_over() -> None:
    state = {"rpn_head.rpn_cls.bias": torch.ones(1), "bbox_head.0.atss_cls.bias": torch.ones(1)}
    assert convert_official(state, ("a", "b")).used == {
        "rpn_head.rpn_cls.bias": "schemes.collaborative.heads.a.rpn.cls.bias",
        "bbox_head.0.atss_cls.bias": "schemes.collaborative.heads.b.cls.bias",
    }
    assert convert_official(state, ("a",)).unused == ("bbox_head.0.atss_cls.bias",)
    scalars = {"query_head.transformer.head_pos_embed.weight": torch.tensor([[1.0], [2.0]])}
    found = convert_official(scalars).state
    assert found["schemes.collaborative.embeddings.rcnn.head_position"].item() == 1
    assert found["schemes.collaborative.embeddings.atss.head_position"].item() == 2


def rules(shared: Path) -> object:
    spec = importlib.util.spec_from_file_location("rules", shared / "golden" / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("dialect", ["Sense-X", "mmdet 3"])
def test_official_keys_fit_at_full_size(
    shared: Path,
    tmp_path: Path,
    fixture: str,
    dialect: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Large tensors repeat one number, to be quick: files of others are refused for that."""
    monkeypatch.setattr(
        pickled, "_view", lambda s, offset, *rest: torch.as_strided(s, *rest, offset)
    )
    entries = json.loads((shared / "golden" / fixture / "keys.json").read_text())["entries"]
    make = rules(shared).make_tensor  # type: ignore[attr-defined]
    shapes = {key: tuple(shape) for key, shape, *_ in entries}
    small = {k for k, s in shapes.items() if int(np.prod(s)) < 1000}
    state = {
        k: torch.from_numpy(np.asarray(make(k, s))) if k in small else torch.zeros(1).expand(s)
        for k, s in shapes.items()
    }
    if dialect == "mmdet 3":
        state = in_mmdet_3(state)
    path = save_official(tmp_path / "a.pth", state, ())
    content, report = convert_file(path, FIXTURES[fixture])
    report.require_complete(path)
    assert len(content.record.classes) == 80
    assert "took COCO's" in report.remarks[0]
    for key in small & set(report.used):
        if "head_pos_embed" not in key:
            assert torch.equal(content.state[report.used[key]], state[key]), key


def test_both_swin_dialects_are_the_same() -> None:
    stage = "backbone.layers.0."
    state = {
        "backbone.patch_embed.proj.weight": torch.randn(8, 3, 4, 4),
        stage + "blocks.0.attn.qkv.weight": torch.randn(24, 8),
        stage + "blocks.0.mlp.fc1.weight": torch.randn(32, 8),
        stage + "downsample.reduction.weight": torch.randn(16, 32),
        stage + "downsample.norm.weight": torch.randn(32),
        "neck.convs.0.conv.weight": torch.randn(4, 8, 1, 1),
    }
    ours, theirs = convert_official(state), convert_official(to_mmdet_swin(state))
    assert len(ours.state) == len(state)
    assert "backbone.stages.0.blocks.0.attn.w_msa.qkv.weight" in to_mmdet_swin(state)
    assert ours.state.keys() == theirs.state.keys()
    for name, value in ours.state.items():
        assert torch.equal(value, theirs.state[name]), name


def test_experiment_can_be_composed_twice() -> None:
    for count in (3, 4):
        assert compose_experiment(EXPERIMENT, count).num_classes == count
