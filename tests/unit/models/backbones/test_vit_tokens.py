"""The Vision Transformer with detection tokens: positions, weights, and what tokens see."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.models.backbones import TokenVitBackbone
from codetr.models.backbones.vit_tokens import TokenVit, load_classifier

DIM, TOKENS = 16, 5
GRID = (2, 3)  # of the tables: 6 patches


def trunk(middle: bool = True, **more: int) -> TokenVit:
    made = TokenVit(DIM, 3, 2, 4 * DIM, TOKENS, (32, 48), middle, **more)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.double().eval()


def resized(table: Tensor, height: int, width: int) -> Tensor:
    """(h * w, C) of the patch rows of a ``table`` (6, C)."""
    grid = table.T.reshape(1, DIM, *GRID)
    return F.interpolate(grid, (height, width), mode="bicubic").flatten(2)[0].T


def looped(body: TokenVit, pixels: Tensor, size: tuple[int, int], as_is: bool) -> Tensor:
    """All tokens of one image, step by step."""

    def position(table: Tensor) -> Tensor:
        patches = table[1:7] if as_is else resized(table[1:7], *size)
        return torch.cat([table[:1], patches, table[7:]])

    patches = body.patch_embed.proj(pixels).flatten(2)[0].T
    x = torch.cat([body.cls_token[0], patches, body.det_token[0]]) + position(body.pos_embed[0])
    for i, block in enumerate(body.blocks):
        x = block(x[None])[0]
        if body.mid_pos_embed is not None and i < 2:
            x = x + position(body.mid_pos_embed[i, 0])
    return body.norm(x)


@pytest.mark.parametrize("middle", [True, False])
@pytest.mark.parametrize(
    ("size", "as_is"),
    [((32, 48), True), ((48, 32), True), ((16, 96), True), ((64, 48), False), ((47, 81), False)],
)
@torch.no_grad()
def test_positions_are_resized_where_the_number_of_patches_differs(
    size: tuple[int, int], as_is: bool, middle: bool
) -> None:
    body, pixels = trunk(middle), torch.randn(1, 3, *size, dtype=torch.float64)
    grid = (size[0] // 16, size[1] // 16)
    expected = looped(body, pixels, grid, as_is)
    cells, tokens = body(pixels)
    assert_close(tokens[0], expected[-TOKENS:])
    assert_close(cells[0].flatten(1).T, expected[1:-TOKENS])
    assert cells.shape == (1, DIM, *grid)


def test_gradients_reach_every_parameter_and_checkpoints_change_nothing() -> None:
    body, pixels = trunk(), torch.randn(2, 3, 48, 48, dtype=torch.float64)
    found = []
    for checkpointed in (0, 3):
        body.train().checkpointed = checkpointed
        body.zero_grad()
        body(pixels)[1].square().sum().backward()
        found.append([p.grad.clone() for p in body.parameters()])
        assert all(p.grad.any() for p in body.parameters())
    assert_close(*found)


def classifier(distilled: bool = False) -> nn.Module:
    name = "deit_small_distilled_patch16_224" if distilled else "deit_small_patch16_224"
    return timm.create_model(name, embed_dim=DIM, depth=3, num_heads=2, img_size=64)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_classifiers_weights_give_its_own_features(distilled: bool) -> None:
    model, body = classifier(distilled), TokenVit(DIM, 3, 2, 4 * DIM, TOKENS, (64, 64))
    own = body.det_token.clone()
    positions = body.pos_embed[:, -TOKENS:].detach().clone()
    report = load_classifier(body, model.state_dict(), "deit")
    assert set(report.new) == {"det_token", "mid_pos_embed"}
    assert torch.equal(body.det_token, own)
    table = model.pos_embed[0, 1:] if distilled else model.pos_embed[0]
    assert_close(body.pos_embed[0, : len(table)], table)
    assert positions.std() == pytest.approx(0.02, rel=0.5)
    assert torch.equal(body.pos_embed[:, len(table) :], positions)
    assert torch.equal(body.blocks[2].mlp.fc1.weight, model.blocks[2].mlp.fc1.weight)


def test_weights_that_do_not_fit_are_named() -> None:
    weights = classifier().state_dict()
    body = TokenVit(DIM, 3, 2, 4 * DIM, TOKENS, (64, 64))
    with pytest.raises(UserError, match="is no table of a square grid of width 16"):
        load_classifier(body, {**weights, "pos_embed": weights["pos_embed"][..., :8]}, "file.pth")
    lacking = {k: v for k, v in weights.items() if not k.startswith("blocks.1.mlp")}
    with pytest.raises(UserError, match=r"file\.pth: 4 of the backbone's tensors.*blocks\.1"):
        load_classifier(body, lacking, "file.pth")
    with pytest.raises(UserError, match="exclude each other"):
        TokenVitBackbone(pretrained=True, weights="file.pth")
    with pytest.raises(UserError, match="7 heads do not divide its width 384"):
        TokenVitBackbone(heads=7)


def test_the_backbone_gives_a_map_and_tokens_without_positions() -> None:
    backbone = TokenVitBackbone(
        dim=DIM, depth=1, heads=2, hidden=8, num_tokens=TOKENS, table=(32, 32)
    )
    pyramid = backbone(torch.randn(2, 3, 40, 64), torch.zeros(2, 40, 64, dtype=torch.bool))
    assert pyramid.shapes == ((2, 4),)
    assert (pyramid.strides, backbone.channels) == ((16,), (DIM,))
    assert pyramid.detection is not None
    assert pyramid.detection.content.shape == (2, TOKENS, DIM)
    assert pyramid.detection.position is None
