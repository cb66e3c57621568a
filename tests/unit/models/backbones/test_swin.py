"""Our Swin Transformer against timm's, against loops over windows, and its laws."""

from __future__ import annotations

from itertools import pairwise

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.models.backbones import SwinBackbone
from codetr.models.backbones.swin_stages import SwinBlock
from codetr.models.backbones.swin_weights import merge_at_the_end
from codetr.models.backbones.window_attention import join_windows, shift_mask, split_windows

SMALL = {"embed_dim": 8, "depths": (2, 3, 2), "heads": (1, 2, 4), "window": 4}
TIMM_SWIN = "swin_tiny_patch4_window7_224"


def swin(**changes: object) -> SwinBackbone:
    return SwinBackbone(**{"name": "small", "out_indices": (0, 1, 2), **SMALL, **changes})


def randomise(module: nn.Module) -> nn.Module:
    """Weights that make each part matter: none at 0 or 1, biases of attention large."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double().eval()


def image(*size: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, *size, dtype=torch.float64)


def norms(backbone: SwinBackbone, maps: list[Tensor]) -> list[Tensor]:
    return [
        backbone.body.get_submodule(f"norm{i}")(m.movedim(1, -1)).movedim(-1, 1)
        for i, m in enumerate(maps)
    ]


@pytest.mark.parametrize("window", [4, 8])
def test_equals_timm_where_nothing_is_padded(window: int) -> None:
    """With windows of 8, the last map is one window, which is shifted all the same."""
    other = timm.create_model(
        TIMM_SWIN,
        embed_dim=8,
        depths=(2, 3, 2),
        num_heads=(1, 2, 4),
        window_size=window,
        strict_img_size=False,
        always_partition=True,
    )
    randomise(other)
    ours = randomise(swin(window=window))
    state = merge_at_the_end(other.state_dict())
    missing, left = ours.body.load_state_dict(state, strict=False)
    assert set(missing) == {f"norm{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert set(left) == {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}
    pixels = image(128, 256, batch=2)
    _, maps = other.forward_intermediates(pixels)
    for found, expected in zip(ours(pixels).maps, norms(ours, maps), strict=True):
        assert_close(found, expected, rtol=0, atol=1e-10)


def block_by_loops(block: SwinBlock, cells: Tensor) -> Tensor:
    """One block of one image (H, W, C), from the paper: each window and each pair by itself."""
    height, width, dim = cells.shape
    window, heads = block.window, block.attn.heads
    down, across = -(-height // window), -(-width // window)
    padded = torch.zeros(down * window, across * window, dim, dtype=cells.dtype)
    padded[:height, :width] = block.norm1(cells)
    attended = torch.zeros_like(padded)
    table = block.attn.relative_position_bias_table.reshape(2 * window - 1, 2 * window - 1, heads)
    for top in range(block.shift, block.shift + down * window, window):
        for left in range(block.shift, block.shift + across * window, window):
            # Positions beyond the border have come around to the other side
            places = [(top + i, left + j) for i in range(window) for j in range(window)]
            inside = [(y % len(padded), x % padded.shape[1]) for y, x in places]
            around = [(y >= len(padded), x >= padded.shape[1]) for y, x in places]
            tokens = torch.stack([padded[y, x] for y, x in inside])
            qkv = block.attn.qkv(tokens).reshape(window**2, 3, heads, dim // heads)
            outputs = []
            for head in range(heads):
                query, key, value = qkv[:, :, head].unbind(1)
                logits = query @ key.T / (dim // heads) ** 0.5
                for i, (y, x) in enumerate(places):
                    for j, (v, u) in enumerate(places):
                        logits[i, j] += table[y - v + window - 1, x - u + window - 1, head]
                        logits[i, j] -= 100.0 * (around[i] != around[j])
                outputs.append(logits.softmax(-1) @ value)
            for (y, x), output in zip(inside, torch.cat(outputs, -1), strict=True):
                attended[y, x] = block.attn.proj(output)
    cells = cells + attended[:height, :width]
    mlp = block.mlp
    return cells + mlp.fc2(F.gelu(mlp.fc1(block.norm2(cells))))


def merge_by_loops(merging: nn.Module, cells: Tensor) -> Tensor:
    """Patch merging of one image: (even, even), (odd row), (odd column), (odd, odd)."""
    height, width, dim = cells.shape
    zero = torch.zeros(dim, dtype=cells.dtype)

    def cell(y: int, x: int) -> Tensor:
        return cells[y, x] if y < height and x < width else zero

    rows = [
        torch.stack(
            [
                torch.cat([cell(y, x), cell(y + 1, x), cell(y, x + 1), cell(y + 1, x + 1)])
                for x in range(0, width, 2)
            ]
        )
        for y in range(0, height, 2)
    ]
    return merging.reduction(merging.norm(torch.stack(rows)))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(5, 7), (3, 6), (8, 4), (1, 2)])
@pytest.mark.parametrize(("window", "shift"), [(3, 0), (3, 1), (4, 2)])
def test_a_block_equals_the_loops(height: int, width: int, window: int, shift: int) -> None:
    block = randomise(SwinBlock(8, 2, window, shift, 0.3))
    cells = torch.randn(2, height, width, 8, dtype=torch.float64)
    found = block(cells, shift_mask(cells, window, window // 2))
    expected = torch.stack([block_by_loops(block, one) for one in cells])
    assert_close(found, expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("size", [(37, 51), (16, 61)])
def test_the_trunk_equals_the_loops_for_any_image_size(size: tuple[int, int]) -> None:
    backbone = randomise(swin(window=3))
    body, pixels = backbone.body, image(*size)
    padded = F.pad(pixels, (0, -size[1] % 4, 0, -size[0] % 4))
    cells = F.conv2d(padded, body.patch_embed.proj.weight, body.patch_embed.proj.bias, stride=4)
    cells = body.patch_embed.norm(cells[0].movedim(0, -1))
    maps = []
    for stage in body.layers:
        for block in stage.blocks:
            cells = block_by_loops(block, cells)
        maps.append(cells.movedim(-1, 0)[None])
        if stage.downsample is not None:
            cells = merge_by_loops(stage.downsample, cells)
    for found, expected in zip(backbone(pixels).maps, norms(backbone, maps), strict=True):
        assert_close(found, expected, rtol=0, atol=1e-11)


@torch.no_grad()
def test_the_shift_mask_is_a_hundred_and_no_wall() -> None:
    """Biases large enough win over it, as in the original."""
    block = randomise(SwinBlock(8, 2, 3, 1, 0.0))
    block.attn.relative_position_bias_table.mul_(200)
    cells = torch.randn(1, 4, 5, 8, dtype=torch.float64)
    mask = shift_mask(cells, 3, 1)
    found = block(cells, mask)
    assert_close(found[0], block_by_loops(block, cells[0]), rtol=0, atol=1e-11)
    assert not torch.allclose(found, block(cells, 2 * mask))


def test_windows_split_and_join() -> None:
    cells = torch.arange(2 * 6 * 9).reshape(2, 6, 9, 1)
    windows = split_windows(cells, 3)
    assert windows.shape == (2, 6, 9, 1)
    assert torch.equal(windows[1, 4], cells[1, 3:6, 3:6].reshape(9, 1))
    assert torch.equal(join_windows(windows, 3, (2, 3)), cells)


@pytest.mark.parametrize("size", [(64, 96), (50, 69), (33, 4), (1, 1)])
def test_maps_have_the_channels_and_strides_that_it_states(size: tuple[int, int]) -> None:
    backbone = swin(out_indices=(0, 2))
    assert (backbone.channels, backbone.strides) == ((8, 32), (4, 16))
    pyramid = backbone(image(*size, batch=2).float())
    assert pyramid.strides == (4, 16)
    assert [tuple(m.shape) for m in pyramid.maps] == [
        (2, channels, *(-(-side // stride) for side in size))
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


def test_stages_after_the_last_output_are_not_built() -> None:
    short, whole = randomise(swin(out_indices=(1,))), randomise(swin(out_indices=(1, 2)))
    _, left = short.body.load_state_dict(whole.body.state_dict(), strict=False)
    assert {key.split(".")[0] for key in left} == {"layers", "norm2"}
    pixels = image(32, 48)
    assert torch.equal(short(pixels).maps[0], whole(pixels).maps[0])


def test_drop_path_grows_linearly_and_acts_in_training_alone() -> None:
    backbone = swin(drop_path_rate=0.6)
    rates = [m.drop_prob for m in backbone.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * i for i in range(7)])
    plain = swin()
    plain.load_state_dict(backbone.state_dict())
    pixels = image(32, 32).float()
    assert torch.equal(backbone.eval()(pixels).maps[2], plain(pixels).maps[2])
    backbone.train()
    outputs = torch.cat([backbone(pixels).maps[2] for _ in range(4)])
    assert len(outputs.unique(dim=0)) > 1


@pytest.mark.parametrize(("checkpointed", "run"), [(0, 0), (3, 3), (True, 7), (False, 0)])
def test_checkpointing_changes_no_gradient(checkpointed: int | bool, run: int) -> None:
    """Paths dropped in the first run are dropped in the second too."""
    plain = swin(drop_path_rate=0.5).double()
    spared = swin(drop_path_rate=0.5, checkpointed=checkpointed).double()
    spared.load_state_dict(plain.state_dict())
    calls = []
    for block in (b for stage in spared.body.layers for b in stage.blocks):
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    pixels = image(36, 40, batch=2)
    for backbone in (plain, spared):
        torch.manual_seed(3)
        sum(m.square().sum() for m in backbone(pixels).maps).backward()
    assert len(calls) == 7 + run
    for one, other in zip(plain.parameters(), spared.parameters(), strict=True):
        assert_close(one.grad, other.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [
        (-1, ()),
        (0, ("patch_embed.",)),
        (1, ("patch_embed.",)),
        (2, ("patch_embed.", "layers.0.")),
        (4, ("patch_embed.", "layers.0.", "layers.1.", "layers.2.")),
    ],
)
def test_frozen_stages_are_numbered_as_officially(stages: int, frozen: tuple[str, ...]) -> None:
    backbone = swin(frozen_stages=stages, drop_path_rate=0.5, checkpointed=True)
    parameters = dict(backbone.body.named_parameters())
    stopped = {name for name in parameters if name.startswith(frozen)}
    for module in (backbone, backbone.train()):
        training = {n for n, m in module.body.named_modules() if m.training and "." in n}
        assert not any(f"{name}.".startswith(frozen) for name in training)
    sum(m.sum() for m in backbone(image(32, 32).float()).maps).backward()
    assert {name for name, p in parameters.items() if not p.requires_grad} == stopped
    assert not any(parameters[name].grad is not None for name in stopped)


def test_every_parameter_gets_a_gradient() -> None:
    backbone = swin(window=3)
    sum(m.square().sum() for m in backbone(image(40, 52).float()).maps).backward()
    assert all(p.grad is not None and p.grad.any() for p in backbone.parameters())


def test_half_precision_gives_nearly_the_same() -> None:
    backbone, pixels = swin().eval(), image(40, 52).float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backbone(pixels).maps
    for found, expected in zip(rounded, backbone(pixels).maps, strict=True):
        assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_the_index_of_relative_positions_is_not_saved() -> None:
    backbone = swin()
    assert not any("relative_position_index" in key for key in backbone.state_dict())
    assert any("relative_position_index" in key for key, _ in backbone.named_buffers())


def test_it_can_be_exported() -> None:
    backbone, pixels = swin().eval(), image(34, 50).float()
    exported = torch.export.export(backbone.body, (pixels,)).module()
    for found, expected in zip(exported(pixels), backbone.body(pixels), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_indices": (0, 3)}, r"out_indices=\[0, 3\].*0 to 2"),
        ({"out_indices": (2, 1)}, r"out_indices=\[2, 1\].*ascending"),
        ({"out_indices": ()}, r"out_indices=\[\]"),
        ({"frozen_stages": 5}, r"frozen_stages=5.*3 stages.*at most"),
        ({"heads": (1, 2)}, r"depths=\[2, 3, 2\].*heads=\[1, 2\]"),
        ({"heads": (1, 3, 4)}, "3 heads of stage 1.*16"),
        ({"pretrained": True, "weights": "a.pth"}, "exclude each other"),
    ],
)
def test_bad_settings_are_one_line(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        swin(**changes)
    assert "\n" not in str(caught.value)


def expected_parameters(dim: int, depths: tuple, heads: tuple, window: int) -> int:
    """Counted by hand: attention 4 C^2, perceptron 8 C^2, merging 8 C^2, and vectors."""
    total = 3 * 16 * dim + dim + 2 * dim
    for i, (depth, head) in enumerate(zip(depths, heads, strict=True)):
        c = dim * 2**i
        total += depth * (12 * c**2 + 13 * c + head * (2 * window - 1) ** 2)
        total += 2 * c  # the output's norm
    return total + sum(
        8 * c**2 + 8 * c for c, _ in pairwise(dim * 2**i for i in range(len(depths)))
    )


def test_number_of_parameters_of_swin_l() -> None:
    depths, heads = (2, 2, 18, 2), (6, 12, 24, 48)
    with torch.device("meta"):
        backbone = SwinBackbone("swin_l", 192, depths, heads, 12)
        published = timm.create_model("swin_large_patch4_window12_384", num_classes=0)
    counted = sum(p.numel() for p in backbone.parameters())
    assert counted == expected_parameters(192, depths, heads, 12) == 195_201_204
    # the classifier has one norm, of the last stage, where a detector's backbone has four
    theirs = sum(p.numel() for p in published.parameters())
    assert counted - theirs == 2 * (192 + 384 + 768)
