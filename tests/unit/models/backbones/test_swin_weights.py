"""Weights of Swin Transformers from every source that is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.models.backbones import SwinBackbone
from codetr.models.backbones.swin_weights import merge_at_the_end, resize_bias_table

SMALL = {"embed_dim": 8, "depths": (2, 2, 2), "heads": (1, 2, 4), "window": 4}
NORMS = {f"norm{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}


def swin(**changes: object) -> SwinBackbone:
    return SwinBackbone(**{"name": "small", "out_indices": (0, 1, 2), **SMALL, **changes})


def original(**changes: object) -> dict[str, Tensor]:
    """A pretrained file's tensors: random, with buffers and a classifier, without output norms."""
    state = {
        name: torch.randn_like(value)
        for name, value in swin(**changes).body.state_dict().items()
        if name not in NORMS
    }
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    state["layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(16, 16).long()
    return {**state, "norm.weight": torch.ones(32), "head.weight": torch.ones(10, 32)}


def loaded(backbone: SwinBackbone, expected: dict[str, Tensor]) -> bool:
    state = backbone.body.state_dict()
    return all(torch.equal(value, expected[n]) for n, value in state.items() if n not in NORMS)


def test_the_original_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = original()
    torch.save({"model": state}, tmp_path / "swin.pth")
    backbone = swin(weights=str(tmp_path / "swin.pth"))
    assert loaded(backbone, state)
    assert backbone.body.norm0.weight.eq(1).all()
    assert "swin.pth" in "".join(capsys.readouterr().out.split())


def test_an_official_detector_with_its_output_norms(tmp_path: Path) -> None:
    body = {name: torch.randn_like(value) for name, value in swin().body.state_dict().items()}
    state = {f"backbone.{name}": value for name, value in body.items()}
    state["neck.convs.0.conv.weight"] = torch.ones(4, 8, 1, 1)
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, tmp_path / "detector.pth")
    backbone = swin(weights=str(tmp_path / "detector.pth"))
    assert all(torch.equal(v, body[n]) for n, v in backbone.body.state_dict().items())


@pytest.mark.parametrize("features_only", [False, True])
def test_timms_file(tmp_path: Path, features_only: bool) -> None:
    """With its names as they are and as ``features_only`` has them."""
    other = timm.create_model(
        "swin_tiny_patch4_window7_224",
        embed_dim=8,
        depths=(2, 2, 2),
        num_heads=(1, 2, 4),
        window_size=4,
        strict_img_size=False,
        always_partition=True,
        features_only=features_only,
    )
    save_file(other.state_dict(), tmp_path / "timm.safetensors")
    backbone = swin(weights=str(tmp_path / "timm.safetensors")).double().eval()
    other.double().eval()
    pixels = torch.rand(1, 3, 64, 128, dtype=torch.float64)
    maps = other(pixels) if features_only else other.forward_intermediates(pixels)[1]
    for found, cells in zip(backbone(pixels).maps, maps, strict=True):
        cells = cells if features_only else cells.movedim(1, -1)
        assert_close(found, F.layer_norm(cells, cells.shape[-1:]).movedim(-1, 1))


def test_pretrained_weights_are_those_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    create, asked = timm.create_model, []

    def stand_in(name: str, pretrained: bool) -> torch.nn.Module:
        asked.append((name, pretrained))
        sizes = {"embed_dim": 8, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": 4}
        return create("swin_tiny_patch4_window7_224", img_size=128, **sizes)

    monkeypatch.setattr(timm, "create_model", stand_in)
    first, second = (swin(name="swin.tag", pretrained=True).body.state_dict() for _ in range(2))
    assert asked == [("swin.tag", True)] * 2
    assert not torch.equal(*(s["layers.0.downsample.reduction.weight"] for s in (first, second)))


@pytest.mark.parametrize("error", [RuntimeError("Unknown model"), OSError("no network\nat all")])
def test_unreachable_pretrained_weights_are_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, pretrained: bool) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match=r"'small'.*backbone\.weights=FILE") as caught:
        swin(pretrained=True)
    assert "\n" not in str(caught.value)


def test_merging_moves_to_the_stage_before_only_where_it_is_timms() -> None:
    first, second = torch.zeros(1), torch.ones(1)
    timms = {"layers.1.downsample.norm.bias": first, "layers_2.downsample.norm.bias": second}
    originals = {"layers.0.downsample.norm.bias": first, "layers_1.downsample.norm.bias": second}
    assert merge_at_the_end(timms) == originals
    renamed = {"layers.0.downsample.norm.bias": first, "layers.1.downsample.norm.bias": second}
    assert merge_at_the_end(renamed) == renamed


def test_position_biases_of_another_window_are_interpolated(tmp_path: Path) -> None:
    state = original(window=3)
    torch.save(state, tmp_path / "swin.pth")
    body = swin(weights=str(tmp_path / "swin.pth")).body.state_dict()
    key = "layers.1.blocks.0.attn.relative_position_bias_table"
    assert body[key].shape == (49, 2)
    for head in range(2):
        square = state[key][:, head].reshape(1, 1, 5, 5)
        expected = F.interpolate(square, size=(7, 7), mode="bicubic", align_corners=False)
        assert_close(body[key][:, head].reshape(7, 7), expected[0, 0])


def test_interpolation_keeps_rows_and_columns_apart() -> None:
    """Heads that grow with the row alone, or with the column alone, still do."""
    row, column = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")
    table = resize_bias_table(torch.stack([row, column], dim=-1).flatten(0, 1), 81)
    rows, columns = table.reshape(9, 9, 2).unbind(-1)
    assert_close(rows, rows[:, :1].expand(9, 9))
    assert_close(columns, rows.T)
    assert (rows[1:] > rows[:-1]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (2, 2, 4)}, r"swin\.pth: 26 of the backbone's .* layers\.2\.blocks\.2\."),
        ({"embed_dim": 16}, r"swin\.pth: .*another shape.*backbone\.name"),
    ],
)
def test_weights_of_another_architecture_are_refused(
    tmp_path: Path, changes: dict, message: str
) -> None:
    torch.save(original(), tmp_path / "swin.pth")
    with pytest.raises(UserError, match=message) as caught:
        swin(**changes, weights=str(tmp_path / "swin.pth"))
    assert "\n" not in str(caught.value)


def test_mmdetections_layout_is_refused_with_the_way_to_load_it(tmp_path: Path) -> None:
    state = {"backbone.stages.0.blocks.0.attn.w_msa.qkv.weight": torch.ones(24, 8)}
    torch.save({"state_dict": state}, tmp_path / "swin.pth")
    with pytest.raises(UserError, match=r"swin\.pth: .*mmdetection.*checkpoint=official:FILE"):
        swin(weights=str(tmp_path / "swin.pth"))
