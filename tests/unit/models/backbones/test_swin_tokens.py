"""Swin with detection tokens: patches go their way undisturbed, tokens see what they should."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.models.backbones import SwinBackbone, TokenSwinBackbone

DIM, TOKENS = 8, 5
SIZES = {"embed_dim": DIM, "depths": (2, 2), "heads": (2, 2), "window": 3}


def backbone(**more: object) -> TokenSwinBackbone:
    options = {**SIZES, "num_tokens": TOKENS, "position_width": 12, "last_width": 6, **more}
    made = TokenSwinBackbone("swin", **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.double().eval()


def images(height: int = 37, width: int = 50) -> tuple[Tensor, Tensor]:
    pixels = torch.randn(2, 3, height, width, dtype=torch.float64)
    padding = torch.zeros(2, height, width, dtype=torch.bool)
    padding[1, :, 30:] = True
    return pixels.masked_fill(padding[:, None], 0.0), padding


@torch.no_grad()
def test_maps_are_those_of_swin_without_tokens() -> None:
    ours, (pixels, padding) = backbone(), images()
    swin = SwinBackbone("swin", **SIZES, out_indices=(0, 1)).double().eval()
    names = swin.body.state_dict().keys() - {
        f"norm{i}.{w}" for i in (0, 1) for w in ("weight", "bias")
    }
    assert ours.body.state_dict().keys() == names
    swin.body.load_state_dict(ours.body.state_dict(), strict=False)
    for norm in (swin.body.norm0, swin.body.norm1):
        norm.forward = lambda x: x  # the outputs as they are
    plain, found = swin(pixels).maps, ours(pixels, padding)
    assert_close(found.maps[0], plain[1])
    merged = ours.merging(plain[1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert_close(found.maps[1], merged)
    assert (ours.channels, ours.strides) == ((16, 6), (8, 16))
    assert [m.shape[1] for m in found.maps] == [16, 6]


def looped(ours: TokenSwinBackbone, pixels: Tensor, padding: Tensor) -> Tensor:
    """Tokens (Q, C) of one image, head by head, from what blocks are given."""
    given = []
    blocks = [block for stage in ours.body.layers for block in stage.blocks]
    handles = [b.norm1.register_forward_hook(lambda m, i, o: given.append(o[0])) for b in blocks]
    ours(pixels, padding)
    for handle in handles:
        handle.remove()
    cells = given[::2]  # norm1 reads cells, then tokens
    tokens, i = ours.tokens, 0
    for s, stage in enumerate(ours.body.layers):
        for b, block in enumerate(stage.blocks):
            asking = block.norm1(tokens) + ours.attention[s][b].position(ours.positions)
            known, bias = asking, torch.zeros(TOKENS, dtype=torch.float64)
            if s == 1:
                height, width, dim = cells[i].shape
                step = (padding.shape[1] / height, padding.shape[2] / width)
                rows = [int(y * step[0]) for y in range(height)]
                columns = [int(x * step[1]) for x in range(width)]
                void = padding[0][rows][:, columns]
                patches = cells[i] + sine(~void, dim)
                known = torch.cat([known, patches.flatten(0, 1)])
                bias = torch.cat([bias, -100.0 * void.flatten()])
            width = tokens.shape[1]
            query = asking @ block.attn.qkv.weight[:width].T + block.attn.qkv.bias[:width]
            both = known @ block.attn.qkv.weight[width:].T + block.attn.qkv.bias[width:]
            heads = []
            for h in range(2):
                part = slice(h * width // 2, (h + 1) * width // 2)
                key, value = both[:, :width][:, part], both[:, width:][:, part]
                logits = query[:, part] @ key.T / math.sqrt(width / 2) + bias
                heads.append(logits.softmax(-1) @ value)
            tokens = tokens + block.attn.proj(torch.cat(heads, dim=1))
            tokens = tokens + block.mlp(block.norm2(tokens))
            i += 1
        if stage.downsample is not None:
            tokens = stage.downsample.reduction(stage.downsample.norm(tokens.repeat(1, 4)))
    return tokens


def sine(valid: Tensor, dim: int) -> Tensor:
    """(H, W, C): y, then x, as shares of the valid area."""
    parts = []
    for axis in (0, 1):
        count = valid.double().cumsum(axis)
        angle = count / (count.max(axis, keepdim=True).values + 1e-6) * 2 * math.pi
        for k in range(dim // 4):
            wave = angle / 10000 ** (2 * k / (dim / 2))
            parts += [wave.sin(), wave.cos()]
    return torch.stack(parts, dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("image", [0, 1])
def test_tokens_equal_a_loop_over_heads(image: int) -> None:
    ours, (pixels, padding) = backbone(), images()
    found = ours(pixels, padding).detection
    assert found is not None
    expected = looped(ours, pixels[image : image + 1], padding[image : image + 1])
    assert_close(found.content[image], expected)
    assert found.position is ours.positions


@torch.no_grad()
def test_without_padding_all_is_image() -> None:
    ours, (pixels, padding) = backbone(), images()
    none = ours(pixels).detection
    assert none is not None
    assert_close(none.content, ours(pixels, torch.zeros_like(padding)).detection.content)
    assert not torch.allclose(none.content[1], ours(pixels, padding).detection.content[1])


def test_gradients_reach_every_parameter() -> None:
    ours, (pixels, padding) = backbone(), images()
    found = ours(pixels, padding)
    total = sum(m.square().sum() for m in found.maps) + found.detection.content.square().sum()
    (total + found.detection.position.sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in ours.parameters())


@torch.no_grad()
def test_an_image_skips_a_path_with_all_its_tokens() -> None:
    torch.manual_seed(0)
    ours = backbone(drop_path_rate=0.5).train()
    block, attention = ours.body.layers[1].blocks[1], ours.attention[1][1]
    cells = torch.randn(40, 3, 3, 16, dtype=torch.float64)
    tokens = torch.randn(40, TOKENS, 16, dtype=torch.float64)
    mask = torch.zeros(1, 9, 9, dtype=torch.float64)
    changed, moved = attention(block, cells, tokens, mask, ours.positions, None)
    same = [(x == y).flatten(1).all(1) for x, y in ((changed, cells), (moved, tokens))]
    assert torch.equal(*same)
    assert 0 < same[0].sum() < 40


def test_impossible_settings_are_named() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        backbone(pretrained=True, weights="file.pth")
    with pytest.raises(UserError, match="differ in length"):
        backbone(heads=(2,))
