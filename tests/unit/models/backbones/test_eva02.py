"""The EVA-02 trunk against loops written from its description, and against timm's EVA-02."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.models.backbones import Eva02Backbone
from codetr.models.backbones.eva02 import Eva02Trunk, resize_positions
from codetr.models.backbones.eva02_weights import load_trunk_weights
from codetr.models.layers.rotary import rotary_table

SMALL = {"depth": 3, "dim": 32, "heads": 2, "hidden": 20, "positions": 4, "window": 3}


def trunk(**changes: object) -> Eva02Trunk:
    """A small trunk in which every parameter counts."""
    body = Eva02Trunk(**{**SMALL, "global_blocks": [1], **changes})
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return body


def attention(tokens: Tensor, state: dict[str, Tensor], heads: int) -> Tensor:
    """One image's window (h, w, C), token by token and head by head."""
    height, width, dim = tokens.shape
    flat = tokens.reshape(-1, dim)
    query = flat @ state["q_proj.weight"].T + state["q_bias"]
    key = flat @ state["k_proj.weight"].T
    value = flat @ state["v_proj.weight"].T + state["v_bias"]
    size = dim // heads
    # Of each pair of channels; test_rotary checks the table itself.
    turn = torch.complex(*rotary_table(height, width, size, dtype=torch.float64)[..., ::2])
    out = torch.zeros_like(flat)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        q, k = (
            torch.view_as_complex(x[:, part].reshape(len(flat), -1, 2).contiguous()) * turn
            for x in (query, key)
        )
        scores = (q[:, None] * k[None].conj()).real.sum(2) / math.sqrt(size)
        out[:, part] = scores.exp() / scores.exp().sum(1, keepdim=True) @ value[:, part]
    out = out @ state["proj.weight"].T + state["proj.bias"]
    return out.reshape(height, width, dim)


def reference(body: Eva02Trunk, pixels: Tensor) -> Tensor:
    """The trunk's map for one image (3, H, W), from its state alone."""
    state = {k: v.double() for k, v in body.state_dict().items()}

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    rows, columns = pixels.shape[1] // 16, pixels.shape[2] // 16
    kernel = state["patch_embed.proj.weight"]
    grid = torch.zeros(rows, columns, len(kernel), dtype=torch.float64)
    for y, x in product(range(rows), range(columns)):
        patch = pixels[:, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
        grid[y, x] = (kernel * patch).sum((1, 2, 3)) + state["patch_embed.proj.bias"]
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    table = state["pos_embed"][0, 1:].reshape(side, side, -1)
    grid = grid + torch.einsum(
        "yi,xj,ijc->yxc", cubic_matrix(side, rows), cubic_matrix(side, columns), table
    )
    for index in range(SMALL["depth"]):
        own, name = part(f"blocks.{index}."), f"blocks.{index}"
        tokens = norm(grid, f"{name}.norm1", 1e-6)
        attn = {k.removeprefix("attn."): v for k, v in own.items() if k.startswith("attn.")}
        window = max(rows, columns) if index == 1 else SMALL["window"]
        out = torch.zeros_like(grid)
        for y, x in product(range(0, rows, window), range(0, columns, window)):
            inside = tokens[y : y + window, x : x + window]
            height, width = inside.shape[:2]
            if index != 1:  # filled up with zeros, which are attended
                filled = torch.zeros(window, window, grid.shape[2], dtype=torch.float64)
                filled[:height, :width] = inside
                inside = filled
            found = attention(inside, attn, SMALL["heads"])
            out[y : y + window, x : x + window] = found[:height, :width]
        grid = grid + out
        tokens = norm(grid, f"{name}.norm2", 1e-6)
        gate = tokens @ own["mlp.w1.weight"].T + own["mlp.w1.bias"]
        hidden = gate * gate.sigmoid() * (tokens @ own["mlp.w2.weight"].T + own["mlp.w2.bias"])
        hidden = norm(hidden, f"{name}.mlp.ffn_ln", 1e-6)
        grid = grid + hidden @ own["mlp.w3.weight"].T + own["mlp.w3.bias"]
    return norm(grid, "out_norm", 1e-5).permute(2, 0, 1)


def cubic_matrix(before: int, after: int) -> Tensor:
    """(after, before) weights of cubic convolution (Keys 1981) with a = -0.75, the pixels' centres
    at halves, borders repeated.
    """

    def weight(t: float) -> float:
        t, a = abs(t), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    matrix = torch.zeros(after, before, dtype=torch.float64)
    for i in range(after):
        centre = (i + 0.5) * before / after - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(j, 0), before - 1)] += weight(centre - j)
    return matrix


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (80, 112), (112, 48), (32, 100)])
def test_trunk_equals_loops(height: int, width: int) -> None:
    """Whole windows or not; the table of positions as it is, enlarged or reduced."""
    body = trunk().double().eval()
    pixels = torch.randn(2, 3, height, width, dtype=torch.float64)
    found = body(pixels)
    assert found.shape == (2, 32, height // 16, width // 16)
    for one, image in zip(found, pixels, strict=True):
        assert_close(one, reference(body, image), atol=1e-11, rtol=1e-11)


@torch.no_grad()
def test_trunk_with_timm_weights_equals_timm() -> None:
    theirs = Eva(
        img_size=96,
        patch_size=16,
        embed_dim=32,
        depth=3,
        num_heads=2,
        mlp_ratio=20 / 32,
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(16, 16),
        class_token=False,
        global_pool="avg",
        num_classes=0,
    ).eval()
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    weights = theirs.state_dict()
    weights["pos_embed"] = torch.cat([torch.randn(1, 1, 32), weights["pos_embed"]], dim=1)
    ours = Eva02Trunk(**{**SMALL, "positions": 6, "global_blocks": range(3)}).eval()
    report = load_trunk_weights(ours, weights, "timm")
    assert set(report.dropped) == {"fc_norm.weight", "fc_norm.bias"}  # of its pooled vector
    assert report.new == ("out_norm.weight", "out_norm.bias")
    pixels = torch.randn(1, 3, 96, 96)
    theirs.norm, ours.out_norm = nn.Identity(), nn.Identity()
    expected = theirs.forward_features(pixels).unflatten(1, (6, 6)).permute(0, 3, 1, 2)
    assert_close(ours(pixels), expected, atol=1e-4, rtol=1e-4)


def test_filled_up_windows_attend_their_zeros() -> None:
    """A zero token is no neutral one: its key has score 0 and its value the bias."""
    body = trunk(depth=1, global_blocks=[]).eval()
    whole = body(torch.ones(1, 3, 48, 48))
    apart = body(torch.ones(1, 3, 48, 32))
    assert not torch.allclose(whole[..., :2], apart, atol=1e-3)


def test_number_of_parameters_of_vit_l_is_that_of_the_official_shapes() -> None:
    with torch.device("meta"):
        body = Eva02Trunk()
    dim, hidden = 1024, 2730
    attention_part = 3 * dim**2 + 2 * dim + dim**2 + dim
    mlp = 2 * (dim * hidden + hidden) + 2 * hidden + hidden * dim + dim
    block = 2 * 2 * dim + attention_part + mlp
    stem = dim * 3 * 16 * 16 + dim + (1 + 32 * 32) * dim
    assert hidden == int(dim * (4 * 2 / 3))
    assert sum(p.numel() for p in body.parameters()) == stem + 24 * block + 2 * dim
    assert not any("rotation" in name for name in body.state_dict())
    assert [i for i, b in enumerate(body.blocks) if not b.window] == [3, 7, 11, 15, 19, 23]


def test_stochastic_depth_rises_linearly() -> None:
    body = trunk(depth=5, drop_path=0.4)
    assert isinstance(body.blocks[0].drop_path, nn.Identity)
    rates = [block.drop_path.drop_prob for block in body.blocks[1:]]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointed_blocks_give_the_same_gradients(drop_path: float) -> None:
    """Also with stochastic depth, of which the second run repeats the draws."""
    pixels, runs = torch.randn(2, 3, 64, 80), []
    for checkpointed in (0, 2):
        torch.manual_seed(5)
        body = trunk(drop_path=drop_path, checkpointed=checkpointed).train()
        calls: list[nn.Module] = []
        for block in body.blocks:
            block.register_forward_pre_hook(lambda module, _: calls.append(module))  # noqa: B023
        torch.manual_seed(6)
        found = body(pixels)
        found.square().sum().backward()
        assert len(calls) == 3 + checkpointed
        runs.append([found, *(p.grad for p in body.parameters())])
    for one, other in zip(*runs, strict=True):
        assert_close(one, other)


def test_every_parameter_gets_a_gradient_and_the_class_token_a_zero() -> None:
    body = trunk()
    body(torch.randn(1, 3, 64, 80)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in body.parameters())
    assert body.pos_embed.grad[:, 0].count_nonzero() == 0
    assert body.pos_embed.grad[:, 1:].count_nonzero() > 0


def test_bf16_autocast_keeps_the_map_close() -> None:
    body = trunk().eval()
    pixels = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        plain = body(pixels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = body(pixels)
    assert_close(mixed.float(), plain, atol=0.15, rtol=0.1)


def test_backbone_states_channels_strides_and_statistics() -> None:
    backbone = Eva02Backbone(trunk(), mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    assert (backbone.channels, backbone.strides) == ((32,), (16,))
    assert (backbone.mean, backbone.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    pixels = torch.randn(1, 3, 64, 96)
    pyramid = backbone.eval()(pixels)
    assert pyramid.strides == (16,)
    assert_close(pyramid.maps[0], backbone.body(pixels))


@pytest.mark.parametrize("changes", [{"global_blocks": [3]}, {"dim": 36}])
def test_shapes_that_do_not_fit_are_user_errors(changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"backbone\.body\.{next(iter(changes))}"):
        trunk(**changes)


def test_weights_of_another_patch_size_and_grid_are_resized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trunk(positions=6)
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    kernel = torch.randn(32, 3, 14, 14)
    state["backbone.patch_embed.proj.weight"] = kernel
    state["backbone.rope_win.freqs_cos"] = torch.zeros(9, 16)
    save_file(state, tmp_path / "w.safetensors")
    body = Eva02Backbone(trunk(), weights=str(tmp_path / "w.safetensors")).body
    enlarge = cubic_matrix(14, 16)
    assert_close(
        body.patch_embed.proj.weight.double(),
        torch.einsum("yi,xj,ocij->ocyx", enlarge, enlarge, kernel.double()),
        atol=1e-5,
        rtol=1e-5,
    )
    reduce = cubic_matrix(6, 4)
    table = source.pos_embed[0, 1:].reshape(6, 6, -1).double()
    assert_close(
        body.pos_embed[0, 1:].reshape(4, 4, -1).double(),
        torch.einsum("yi,xj,ijc->yxc", reduce, reduce, table),
        atol=1e-5,
        rtol=1e-5,
    )
    assert_close(body.pos_embed[:, 0], source.pos_embed[:, 0])
    for name, value in source.blocks.state_dict().items():
        assert_close(body.blocks.state_dict()[name], value)
    assert "rope_win" in capsys.readouterr().out


def test_weights_that_fit_are_loaded_unchanged(tmp_path: Path) -> None:
    source = trunk()
    torch.save({"module": source.state_dict()}, tmp_path / "w.pth")
    body = Eva02Backbone(trunk(), weights=str(tmp_path / "w.pth")).body
    for name, value in source.state_dict().items():
        assert torch.equal(body.state_dict()[name], value), name


@pytest.mark.parametrize("rows", [16, 1])
def test_position_tables_of_another_form_are_user_errors(rows: int) -> None:
    with pytest.raises(UserError, match=rf"w\.pth: pos_embed has shape \(1, {rows}, 32\)"):
        load_trunk_weights(trunk(), {"pos_embed": torch.zeros(1, rows, 32)}, "w.pth")


def test_two_sources_of_weights_are_a_user_error() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        Eva02Backbone(trunk(), pretrained=True, weights="file.pth")


def test_hub_without_the_weights_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"no pretrained .*no_such_model'.*weights=FILE"):
        Eva02Backbone(trunk(), name="no_such_model", pretrained=True)


def test_pretrained_asks_timm_for_the_named_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = trunk(), []

    def create_model(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        return source

    monkeypatch.setattr("timm.create_model", create_model)
    body = Eva02Backbone(trunk(), name="some_eva02", pretrained=True).body
    assert asked == [("some_eva02", True)]
    assert torch.equal(body.blocks[2].mlp.w3.weight, source.blocks[2].mlp.w3.weight)


def test_positions_of_the_tables_own_size_are_taken_as_they_are() -> None:
    table = torch.randn(1, 16, 3)
    assert torch.equal(resize_positions(table, 4, 4), table.reshape(1, 4, 4, 3))
    larger = resize_positions(table, 5, 7)
    expected = F.interpolate(table.reshape(1, 4, 4, 3).permute(0, 3, 1, 2), (5, 7), mode="bicubic")
    assert torch.equal(larger, expected.permute(0, 2, 3, 1))
