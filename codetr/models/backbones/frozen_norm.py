"""Batch norm whose statistics and affine parameters are constants."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

COUNTER = "num_batches_tracked"
"""The step counter of batch norm in weight files, which frozen norms lack."""


class _Folded(NamedTuple):
    """(1, C, 1, 1) ``scale`` and ``shift`` of one dtype, computed from the buffers ``sources`` at
    their ``versions``.
    """

    sources: tuple[Tensor, ...]
    versions: tuple[int, ...]
    scale: Tensor
    shift: Tensor


class FrozenBatchNorm(nn.Module):
    """``norm`` with constant statistics and affine parameters, then timm's dropout and activation.

    Its output has the dtype of its input: scale and shift are computed in the dtype of the
    buffers, rounded to that of the input, and cached until a buffer changes. Buffers have the
    names of batch norm.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(
                "cannot freeze batch norm without statistics: set model.backbone.frozen_norm=false"
            )
        mean, var = norm.running_mean.detach(), norm.running_var.detach()
        self.eps = norm.eps
        self.register_buffer("weight", _detached(norm.weight, torch.ones_like(var)))
        self.register_buffer("bias", _detached(norm.bias, torch.zeros_like(mean)))
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)
        self.drop: nn.Module = getattr(norm, "drop", nn.Identity())
        self.act: nn.Module = getattr(norm, "act", nn.Identity())
        self._kept: dict[torch.dtype, _Folded] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape and dtype."""
        scale, shift = self._constants(x.dtype)
        if x.device.type == "cpu":  # where the fused form is slow on channels-first maps
            normed = (x * scale).add_(shift)
        else:
            normed = torch.addcmul(shift, x, scale)
        out: Tensor = self.act(self.drop(normed))
        return out

    def _constants(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling() or self.weight.is_inference():
            return self._fold(dtype)  # part of the graph, or a tensor without version
        sources = (self.weight, self.bias, self.running_mean, self.running_var)
        versions = tuple(buffer._version for buffer in sources)
        kept = self._kept.get(dtype)
        if kept is None or kept.versions != versions or not _same(kept.sources, sources):
            # also usable in training, if evaluation comes first
            with torch.inference_mode(False), torch.no_grad():
                kept = _Folded(sources, versions, *self._fold(dtype))
            self._kept[dtype] = kept
        return kept.scale, kept.shift

    def _fold(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return scale.to(dtype).view(1, -1, 1, 1), shift.to(dtype).view(1, -1, 1, 1)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        state_dict.pop(prefix + COUNTER, None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"{len(self.weight)}, eps={self.eps}"


def freeze_batch_norms(module: nn.Module) -> nn.Module:
    """``module`` with every batch norm in it frozen, in place; a frozen one if it is one itself."""
    if isinstance(module, _BatchNorm):
        return FrozenBatchNorm(module)
    for name, child in module.named_children():
        frozen = freeze_batch_norms(child)
        if frozen is not child:
            module.add_module(name, frozen)
    return module


def _detached(parameter: Tensor | None, otherwise: Tensor) -> Tensor:
    return otherwise if parameter is None else parameter.detach().clone()


def _same(before: tuple[Tensor, ...], now: tuple[Tensor, ...]) -> bool:
    return all(a is b for a, b in zip(before, now, strict=True))
