from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from codetr.errors import UserError
from codetr.models.backbones.weights import (
    LoadReport,
    load_named_weights,
    match_weights,
    read_weights,
)

LITE0 = "weights/tf_efficientnet_lite0.imagenet.safetensors"


def load_file(module: nn.Module, path: Path) -> LoadReport:
    return load_named_weights(module, read_weights(path), str(path))


def features(name: str) -> nn.Module:
    return timm.create_model(name, pretrained=False, features_only=True)


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "test_vit"])
def test_plain_checkpoint_fills_every_tensor_of_the_features(name: str, prefix: str) -> None:
    plain = timm.create_model(name, pretrained=False).state_dict()
    module = features(name)
    matched, report = match_weights(
        {prefix + key: value for key, value in plain.items()}, module.state_dict()
    )
    assert report.new == ()
    assert set(report.loaded) == set(module.state_dict())
    assert all("head" in key or "fc" in key or "norm" in key for key in report.dropped)
    module.load_state_dict(matched)


def test_real_weights_load_and_change_the_features(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = features("tf_efficientnet_lite0")
    before = module.state_dict()["conv_stem.weight"].clone()
    report = load_file(module, shared / LITE0)
    assert report.new == ()
    assert len(report.loaded) == 240
    assert set(report.dropped) >= {"classifier.weight", "conv_head.weight"}
    assert not torch.equal(before, module.state_dict()["conv_stem.weight"])
    assert "dropped" in capsys.readouterr().out


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_pth_files_and_their_wrappers(tmp_path: Path, wrapper: str | None) -> None:
    source, target = nn.Linear(2, 2), nn.Linear(2, 2)
    state: dict = source.state_dict()
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 1}, tmp_path / "w.pth")
    load_file(target, tmp_path / "w.pth")
    torch.testing.assert_close(target.weight, source.weight)


def test_shapes_and_names_that_do_not_fit_are_reported(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    weights = {"weight": torch.ones(3, 2), "bias": torch.ones(2), "extra": torch.ones(1)}
    save_file(weights, tmp_path / "w.safetensors")
    report = load_file(module, tmp_path / "w.safetensors")
    assert report.loaded == ("bias",)
    assert report.new == ("weight",)
    assert report.dropped == {"weight": "shape (3, 2) instead of (2, 2)", "extra": "no place"}


@pytest.mark.parametrize("case", ["missing", "junk", "nothing fits", "no tensors"])
def test_unusable_file_is_one_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / "w.pth"
    if case == "junk":
        path.write_bytes(b"junk")
    elif case == "nothing fits":
        torch.save({"other": torch.ones(1)}, path)
    elif case == "no tensors":
        torch.save([1, 2], path)
    with pytest.raises(UserError, match=r"w\.pth") as caught:
        load_file(nn.Linear(2, 2), path)
    assert "\n" not in str(caught.value)
