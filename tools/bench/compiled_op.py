"""The compiled op of the Deformable-DETR repository behind our operator's arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from codetr.models.ops.msda_reference import Shapes

STEP = 64
"""Images that one call of its kernel takes."""


class _Compiled(torch.autograd.Function):
    """Its two functions as one differentiable operation."""

    @staticmethod
    def forward(
        ctx: Any,
        module: ModuleType,
        value: Tensor,
        shapes: Tensor,
        starts: Tensor,
        locations: Tensor,
        weights: Tensor,
    ) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        result: Tensor = module.ms_deform_attn_forward(
            value, shapes, starts, locations, weights, STEP
        )
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, shapes, starts, locations, weights = ctx.saved_tensors
        for_value, for_locations, for_weights = ctx.module.ms_deform_attn_backward(
            value, shapes, starts, locations, weights, grads[0].contiguous(), STEP
        )
        return None, for_value, None, None, for_locations, for_weights


def compiled_op(module: ModuleType) -> Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]:
    """``module`` as ``multi_scale_deformable_attention``. It knows no bfloat16: values go in and
    come out by way of float32, as its users do under autocast.
    """
    return partial(_call, module)


def _call(
    module: ModuleType, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> Tensor:
    levels, starts = _levels(shapes, value.device)
    out: Tensor = _Compiled.apply(module, value.float(), levels, starts, locations, weights)
    return out.to(value.dtype)


@cache
def _levels(shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sizes (L, 2) and first tokens (L,) of the levels. Kept: numbers from the host are waited for,
    once in a model's step at most but in every call that is timed here.
    """
    levels = torch.tensor(shapes, device=device)
    areas = levels.prod(1)
    return levels, areas.cumsum(0) - areas
