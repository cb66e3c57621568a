"""mmdetection's Swin Transformer: names, and the order of merged channels."""

from __future__ import annotations

import pytest
import torch
from mmdet_swin_names import to_mmdet_swin, to_unfold_order
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from codetr.checkpoints.mmdet_swin import (
    from_unfold_order,
    is_mmdet_swin,
    to_official_swin,
)
from codetr.models.backbones import SwinBackbone
from codetr.models.backbones.swin_stages import PatchMerging

MMDET_BLOCK = {
    "norm1.weight": "norm1.weight",
    "attn.w_msa.relative_position_bias_table": "attn.relative_position_bias_table",
    "attn.w_msa.relative_position_index": "attn.relative_position_index",
    "attn.w_msa.qkv.weight": "attn.qkv.weight",
    "attn.w_msa.qkv.bias": "attn.qkv.bias",
    "attn.w_msa.proj.weight": "attn.proj.weight",
    "norm2.bias": "norm2.bias",
    "ffn.layers.0.0.weight": "mlp.fc1.weight",
    "ffn.layers.1.bias": "mlp.fc2.bias",
}
MMDET = {
    "patch_embed.projection.weight": "patch_embed.proj.weight",
    "patch_embed.norm.bias": "patch_embed.norm.bias",
    "norm3.weight": "norm3.weight",
    "stages.2.downsample.norm.weight": "layers.2.downsample.norm.weight",
    "stages.2.downsample.reduction.weight": "layers.2.downsample.reduction.weight",
    **{f"stages.2.blocks.17.{k}": f"layers.2.blocks.17.{v}" for k, v in MMDET_BLOCK.items()},
}


def merge_by_unfold(state: dict[str, Tensor], maps: Tensor) -> Tensor:
    """Patch merging as mmdetection has it, from its description: pad to even, ``nn.Unfold`` with
    kernel and stride 2, layer norm, linear map. (B, C, H, W) to (B, 2 C, H / 2, W / 2).
    """
    height, width = maps.shape[2:]
    maps = F.pad(maps, (0, width % 2, 0, height % 2))
    cells = F.unfold(maps, kernel_size=2, stride=2).transpose(1, 2)
    cells = F.layer_norm(cells, cells.shape[-1:], state["norm.weight"], state["norm.bias"])
    merged = F.linear(cells, state["reduction.weight"])
    return merged.transpose(1, 2).unflatten(2, (-(-height // 2), -(-width // 2)))


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_names(prefix: str) -> None:
    state = {f"{prefix}{name}": torch.ones(2, 8) for name in MMDET}
    assert is_mmdet_swin(state)
    converted = to_official_swin(state)
    assert list(converted) == [f"{prefix}{name}" for name in MMDET.values()]
    assert not is_mmdet_swin(converted)
    assert list(to_mmdet_swin(converted)) == list(state)


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
@pytest.mark.parametrize("channels", [2, 3, 8])
def test_both_orders_merge_to_the_same(channels: int, size: tuple[int, int]) -> None:
    merging = PatchMerging(channels).double()
    for parameter in merging.parameters():
        torch.nn.init.normal_(parameter)
    maps = torch.randn(2, channels, *size, dtype=torch.float64)
    official = merging(maps.movedim(1, -1)).movedim(-1, 1)

    ours = {f"backbone.layers.0.downsample.{k}": v for k, v in merging.state_dict().items()}
    mmdet = to_mmdet_swin(ours)
    parts = {k.removeprefix("backbone.stages.0.downsample."): v for k, v in mmdet.items()}
    assert_close(merge_by_unfold(parts, maps), official, rtol=0, atol=1e-12)
    unordered = {k.removeprefix("backbone.layers.0.downsample."): v for k, v in ours.items()}
    assert not torch.allclose(merge_by_unfold(unordered, maps), official)

    back = PatchMerging(channels).double()
    official_state = to_official_swin(mmdet)
    back.load_state_dict(
        {k.removeprefix("backbone.layers.0.downsample."): v for k, v in official_state.items()}
    )
    assert torch.equal(back(maps.movedim(1, -1)).movedim(-1, 1), official)


def test_the_order_of_one_row() -> None:
    """Two channels a, b of the cells at (row, column), named by digits."""
    unfolded = torch.tensor([[100, 101, 110, 111, 200, 201, 210, 211]])  # channel, row, column
    official = torch.tensor([[100, 200, 110, 210, 101, 201, 111, 211]])  # (0,0) (1,0) (0,1) (1,1)
    assert torch.equal(from_unfold_order(unfolded), official)
    assert torch.equal(to_unfold_order(official), unfolded)
    assert torch.equal(from_unfold_order(unfolded[0]), official[0])


def test_a_whole_trunk_there_and_back() -> None:
    body = SwinBackbone("small", 8, (1, 2, 1), (1, 2, 4), 3, (0, 1, 2)).body
    state = {f"backbone.{name}": torch.randn_like(v) for name, v in body.state_dict().items()}
    mmdet = to_mmdet_swin(state)
    assert is_mmdet_swin(mmdet)
    assert not any("layers." in name.replace("ffn.layers.", "") for name in mmdet)
    back = to_official_swin(mmdet)
    assert list(back) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in back.items())


def test_other_state_dicts_are_left_alone() -> None:
    state = {
        "backbone.layer1.0.conv1.weight": torch.ones(4, 4, 1, 1),
        "backbone.layers.0.blocks.0.attn.qkv.weight": torch.ones(12, 4),
        "neck.convs.0.conv.weight": torch.ones(4, 8, 1, 1),
        "query_head.transformer.encoder.layers.0.norms.0.weight": torch.ones(8),
    }
    assert not is_mmdet_swin(state)
    converted = to_official_swin(state)
    assert list(converted) == list(state)
    assert all(converted[name] is value for name, value in state.items())
