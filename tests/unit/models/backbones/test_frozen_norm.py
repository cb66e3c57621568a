"""Frozen batch norm: the numbers of batch norm in evaluation, in the dtype of its input."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.testing import assert_close

from codetr.models.backbones import TimmBackbone
from codetr.models.backbones.frozen_norm import FrozenBatchNorm, freeze_batch_norms


def norm(kind: type[nn.BatchNorm2d] = nn.BatchNorm2d, **options: object) -> nn.BatchNorm2d:
    """With random constants."""
    made = kind(3, **options)
    for tensor in (*made.parameters(), made.running_mean, made.running_var):
        tensor.data.uniform_(0.3, 2.0)
    return made.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 1e-3}], ids=str)
def test_is_batch_norm_in_evaluation(dtype: torch.dtype, options: dict[str, object]) -> None:
    exact = norm(**options).to(dtype)
    frozen, x = FrozenBatchNorm(exact).train(), torch.randn(2, 3, 4, 5, dtype=dtype)
    assert_close(frozen(x), exact(x))
    with torch.device("meta"):
        assert frozen.to("meta")(x.to("meta")).shape == x.shape  # the fused form


def test_the_fused_form_of_devices_has_the_same_numbers() -> None:
    """What runs on GPUs, run on the CPU."""
    frozen, x = FrozenBatchNorm(norm()), torch.randn(2, 3, 4, 5, requires_grad=True)
    scale, shift = frozen._constants(torch.float32)
    fused = torch.addcmul(shift, x, scale)
    assert_close(fused, frozen(x))
    assert_close(torch.autograd.grad(fused.sum(), x), torch.autograd.grad(frozen(x).sum(), x))


def test_brings_its_activation_and_its_names() -> None:
    exact = norm(BatchNormAct2d)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), exact, nn.Sequential(norm()))
    x, names = torch.randn(2, 3, 4, 5), set(model.state_dict())
    expected, before = model(x), copy.deepcopy(model.state_dict())
    frozen = freeze_batch_norms(model)
    assert_close(frozen(x), expected)
    assert set(frozen.state_dict()) == {n for n in names if "num_batches" not in n}
    assert sum(p.numel() for p in frozen.parameters()) == 12
    frozen.load_state_dict(before)  # the counters of files are no obstacle
    assert_close(frozen(x), expected)


@pytest.mark.parametrize("how", ["load", "move", "in place", "assign"])
def test_constants_follow_the_buffers(how: str) -> None:
    frozen, x = FrozenBatchNorm(norm()), torch.randn(2, 3, 4, 5)
    with torch.inference_mode():
        frozen(x)  # what evaluation keeps is used in training
    other = FrozenBatchNorm(norm())
    if how == "load":
        frozen.load_state_dict(other.state_dict())
    elif how == "move":
        frozen, other, x = frozen.double(), frozen, x.double()
    elif how == "in place":
        for buffer, new in zip(frozen.buffers(), other.buffers(), strict=True):
            buffer.copy_(new)
    else:
        for name, new in other.named_buffers():
            setattr(frozen, name, new)
    found = frozen(x.requires_grad_())
    fresh = FrozenBatchNorm(norm()).to(x.dtype)
    fresh.load_state_dict(frozen.state_dict())
    assert torch.equal(found, fresh(x))
    found.sum().backward()


def test_built_under_inference_mode_it_runs() -> None:
    with torch.inference_mode():
        frozen, x = FrozenBatchNorm(norm()), torch.randn(2, 3, 4, 5)
        assert torch.equal(frozen(x), frozen(x))


def test_constants_are_computed_once() -> None:
    frozen, x = FrozenBatchNorm(norm()), torch.randn(2, 3, 4, 5)
    frozen(x)
    kept = frozen._constants(torch.float32)
    frozen(x.bfloat16())
    again = frozen._constants(torch.float32)
    assert all(a is b for a, b in zip(kept, again, strict=True))


def test_without_statistics_there_is_nothing_to_freeze() -> None:
    with pytest.raises(ValueError, match="without statistics"):
        FrozenBatchNorm(nn.BatchNorm2d(3, track_running_stats=False))


def test_exports_what_it_computes() -> None:
    model, x = (
        freeze_batch_norms(nn.Sequential(nn.Conv2d(3, 3, 1), norm())),
        torch.randn(1, 3, 4, 5),
    )
    expected = model(x)
    program = torch.export.export(model, (x,))
    assert_close(program.module()(x), expected)
    assert torch.equal(model(x), expected)


def test_every_map_and_activation_of_a_resnet_is_bfloat16_under_autocast() -> None:
    backbone, dtypes = TimmBackbone("resnet50", frozen_norm=True), {}

    def note(name: str) -> None:
        def hook(module: nn.Module, given: object, out: torch.Tensor) -> None:
            dtypes[name] = out.dtype

        backbone.body.get_submodule(name).register_forward_hook(hook)

    for name, module in backbone.body.named_modules():
        if not list(module.children()) or isinstance(module, FrozenBatchNorm):
            note(name)
    with torch.autocast("cpu", torch.bfloat16):
        maps = backbone(torch.rand(1, 3, 64, 64)).maps
    assert sum("bn" in name and "." not in name.split("bn")[1] for name in dtypes) >= 49
    assert set(dtypes.values()) == {torch.bfloat16}
    assert {m.dtype for m in maps} == {torch.bfloat16}
    sum(m.float().sum() for m in maps).backward()
