"""Feature maps of timm models: layout, freezing, and messages."""

import inspect

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.models.backbones import TimmBackbone
from codetr.models.backbones.timm import FETCHING

SWIN = "swin_tiny_patch4_window7_224"
SMALL_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


def swin(**model_args: object) -> TimmBackbone:
    return TimmBackbone(
        SWIN, out_indices=(0, 2), model_args={**SMALL_SWIN, "strict_img_size": False, **model_args}
    )


def trainable(backbone: TimmBackbone) -> set[str]:
    return {name for name, p in backbone.body.named_parameters() if p.requires_grad}


def test_maps_have_the_channels_and_strides_that_it_states() -> None:
    backbone = TimmBackbone("resnet10t", out_indices=(1, 3))
    pyramid = backbone(torch.rand(2, 3, 64, 96))
    assert (backbone.channels, backbone.strides) == ((64, 256), (4, 16))
    assert pyramid.strides == backbone.strides
    assert [tuple(m.shape) for m in pyramid.maps] == [(2, 64, 16, 24), (2, 256, 4, 6)]


@pytest.mark.parametrize("height", [64, 32])  # 64 / 4 rows are as many as the first map's channels
def test_swin_maps_are_brought_to_channels_first(height: int) -> None:
    backbone = swin().eval()
    assert (backbone.channels, backbone.strides) == ((16, 64), (4, 16))
    pixels = torch.rand(1, 3, height, 96)
    pyramid = backbone(pixels)
    assert [tuple(m.shape) for m in pyramid.maps] == [
        (1, 16, height // 4, 24),
        (1, 64, height // 16, 6),
    ]
    for found, channels_last in zip(pyramid.maps, backbone.body(pixels), strict=True):
        assert_close(found, channels_last.movedim(-1, 1))


def test_swin_takes_any_size_and_pads_it_by_zeros() -> None:
    """As the official one does: right and below, to whole patches (and windows, inside)."""
    backbone = swin().eval()
    pixels = torch.rand(1, 3, 50, 69)
    found = backbone(pixels)
    assert found.shapes == ((13, 18), (4, 5))
    padded = nn.functional.pad(pixels, (0, 3, 0, 2))
    for one, other in zip(found.maps, backbone(padded).maps, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [
        (-1, ()),
        (0, ("conv1", "bn1")),
        (1, ("conv1", "bn1", "layer1")),
        (3, ("conv1", "bn1", "layer1", "layer2", "layer3")),
    ],
)
def test_frozen_stages_of_a_resnet(stages: int, frozen: tuple[str, ...]) -> None:
    backbone = TimmBackbone("resnet10t", frozen_norm=False, frozen_stages=stages)
    names = {name for name, _ in backbone.body.named_parameters()}
    stopped = {name for name in names if name.split(".")[0] in frozen}
    assert trainable(backbone) == names - stopped
    backbone(torch.rand(1, 3, 64, 64)).maps[-1].sum().backward()
    assert {n for n, p in backbone.body.named_parameters() if p.grad is not None} == names - stopped


@pytest.mark.parametrize(
    ("name", "frozen", "free"),
    [
        ("tf_efficientnet_lite0", ("conv_stem", "bn1", "blocks.0", "blocks.1"), "blocks.2"),
        ("convnext_atto", ("stem", "stages_0", "stages_1"), "stages_2"),
    ],
)
def test_frozen_stages_of_other_layouts(name: str, frozen: tuple[str, ...], free: str) -> None:
    backbone = TimmBackbone(name, out_indices=(2, 3), frozen_norm=False, frozen_stages=1)
    names = {key for key, _ in backbone.body.named_parameters()}
    assert names - trainable(backbone) == {key for key in names if key.startswith(frozen)}
    assert any(key.startswith(free) for key in trainable(backbone))


def test_frozen_norm_keeps_its_statistics_in_training() -> None:
    backbone = TimmBackbone("resnet10t", frozen_norm=True).train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert not any("bn" in name for name in trainable(backbone))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    pixels = torch.rand(2, 3, 64, 64) * 5
    in_training = backbone(pixels).maps[-1]
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert_close(in_training, backbone.eval()(pixels).maps[-1])


def test_free_norm_learns_its_statistics() -> None:
    backbone = TimmBackbone("resnet10t", frozen_norm=False).train()
    assert any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    before = {name: value.clone() for name, value in backbone.body.named_buffers()}
    backbone(torch.rand(2, 3, 64, 64) * 5)
    assert any(
        not torch.equal(value, before[name]) for name, value in backbone.body.named_buffers()
    )


@pytest.mark.parametrize("name", ["resnet51", "no_such_model"])
def test_unknown_names_are_user_errors(name: str) -> None:
    with pytest.raises(UserError, match=f"backbone '{name}'.*timm.list_models"):
        TimmBackbone(name)


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet10t.c3_in1k", "local-dir:here", "a/b"])
def test_places_are_no_names(name: str) -> None:
    """A checkpoint names its backbone: it must not have timm fetch anything."""
    with pytest.raises(UserError, match="is a path, not a timm model"):
        TimmBackbone(name)


@pytest.mark.parametrize("key", sorted(FETCHING))
def test_arguments_that_fetch_files_are_refused(key: str) -> None:
    assert key in inspect.signature(timm.create_model).parameters
    with pytest.raises(UserError, match=rf"model_args\.{key} would make timm fetch"):
        TimmBackbone("resnet10t", model_args={key: "evil.pth"})


def test_levels_that_are_not_there_are_user_errors() -> None:
    with pytest.raises(UserError, match=r"frozen_stages=9.*levels 0 to 4"):
        TimmBackbone("resnet10t", frozen_stages=9)
    with pytest.raises(UserError, match=r"frozen_stages=0.*frozen_stages=-1"):
        TimmBackbone("test_vit", out_indices=(0,), frozen_stages=0)


def test_two_sources_of_weights_are_a_user_error() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        TimmBackbone("resnet10t", pretrained=True, weights="file.pth")


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_every_second_cell_of_a_dilated_last_stage_is_a_cell_of_the_strided_one(name: str) -> None:
    """DC5. So it is if and only if what reads before the stride stays undilated (the first block's
    strided convolution) and all after it is dilated: weights see what they were trained on.
    """
    plain = TimmBackbone(name, out_indices=(4,)).eval()
    dilated = TimmBackbone(name, out_indices=(4,), model_args={"output_stride": 16}).eval()
    assert (plain.strides, dilated.strides) == ((32,), (16,))
    dilated.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 96, 128)
    (coarse,), (fine,) = plain(images).maps, dilated(images).maps
    assert fine.shape[-2:] == (6, 8)
    assert_close(fine[..., ::2, ::2], coarse)
