"""Compiled parts keep their names and numbers; pictures change their order and nothing else."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from codetr.backbones import TimmBackbone
from codetr.errors import UserError
from codetr.training.acceleration import compile_parts, use_channels_last, wants_channels_last
from codetr.training.optim import adamw, can_fuse

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def small_detector() -> nn.Module:
    detector = nn.Module()
    detector.backbone = nn.Linear(2, 2)
    for name in ("encoder", "decoder"):
        part = nn.Module()
        part.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
        detector.add_module(name, part)
    return detector


def test_named_parts_are_compiled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    detector = small_detector()
    keys = list(detector.state_dict())
    compile_parts(detector, [])
    assert compiled == []
    compile_parts(detector, ["backbone", "decoder"])
    assert compiled == [detector.backbone, *detector.decoder.layers]
    assert list(detector.state_dict()) == keys


def test_compiled_parts_have_the_same_weights_and_answers() -> None:
    """With the tracer alone, which needs no C compiler."""
    detector = small_detector()
    x = torch.randn(3, 2)
    before, keys = detector.backbone(x), list(detector.state_dict())
    original = nn.Module.compile
    try:
        nn.Module.compile = lambda self: original(self, backend="eager")  # type: ignore[method-assign]
        compile_parts(detector, ["backbone"])
    finally:
        nn.Module.compile = original  # type: ignore[method-assign]
    assert torch.equal(detector.backbone(x), before)
    assert list(detector.state_dict()) == keys


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(UserError, match=r"no part head: choose from backbone, encoder, decoder"):
        compile_parts(small_detector(), ["backbone", "head"])


def test_channels_last_is_automatic_for_convolutions_on_cuda() -> None:
    resnet = SimpleNamespace(backbone=TimmBackbone("resnet10t", out_indices=(4,)))
    other = SimpleNamespace(backbone=nn.Identity())
    assert wants_channels_last(resnet, "auto", CUDA)
    assert not wants_channels_last(resnet, "auto", CPU)
    assert not wants_channels_last(other, "auto", CUDA)
    assert wants_channels_last(other, True, CPU)
    assert not wants_channels_last(resnet, False, CUDA)
    with pytest.raises(UserError, match=r"trainer\.channels_last=always: choose true, false"):
        wants_channels_last(resnet, "always", CPU)


def test_channels_last_pictures_give_channels_last_maps_of_the_same_values() -> None:
    backbone = TimmBackbone("resnet10t", out_indices=(3, 4)).eval()
    detector = nn.ModuleDict({"backbone": backbone})
    keys, pixels = list(detector.state_dict()), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = backbone(pixels)
        use_channels_last(detector)
        turned = backbone(pixels)
    assert list(detector.state_dict()) == keys
    for one, other in zip(plain.maps, turned.maps, strict=True):
        assert other.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_fused_kernels_wherever_gradients_can_still_be_clipped() -> None:
    assert [can_fuse(p) for p in ("32-true", "bf16-mixed", "16-mixed")] == [True, True, False]
    named = [("weight", nn.Parameter(torch.ones(2)))]
    for fused in (True, False):
        optimizer = adamw(named, 1, lr=0.1, weight_decay=0.0, rules={}, fused=fused)
        assert optimizer.defaults["fused"] is (fused or None)
