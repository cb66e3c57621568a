"""Multi-scale deformable attention: the sampling core, without parameters, and its backends.

Deformable DETR (arXiv 2010.04159), equation 3; same convention as the official operator: a
location x samples a level at pixel ``x * W - 0.5``, bilinear, taps outside the level are zero.

The operator ``codetr::msda`` is one node to autograd, torch.compile and torch.export. On CUDA it
is a Triton kernel (``msda_triton``), on the CPU a numba one (``msda_cpu``). Where neither serves,
the plain PyTorch operations of ``msda_reference`` take its place.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codetr.errors import UserError
from codetr.models.ops.msda_reference import Shapes, sample_levels

CHOICES = ("auto", "triton", "numba", "torch")
HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_NUMBA = importlib.util.find_spec("numba") is not None

_choice = "auto"


def multi_scale_deformable_attention(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples of all levels.

    Args:
        value: (B, S, heads, D), levels one after the other, each row by row.
        shapes: (H, W) of each level; their areas sum to S.
        locations: (B, Q, heads, L, P, 2) as (x, y), 0 to 1 spans a level's whole extent. Keep
            them in float32 under mixed precision: bf16 has steps of a pixel there.
        weights: (B, Q, heads, L, P).

    Returns:
        (B, Q, heads * D) in the dtype of ``value``. The arithmetic is done in that of
        ``locations``, at least in float32.

    Raises:
        ValueError: the levels do not have as many tokens as ``value``.
    """
    if sum(h * w for h, w in shapes) != value.shape[1]:
        raise ValueError(f"levels {shapes} do not make up {value.shape[1]} tokens")
    precision = torch.promote_types(locations.dtype, torch.float32)
    locations, weights = locations.to(precision), weights.to(precision)
    if not _has_operator(value.device.type):
        return sample_levels(value, shapes, locations, weights)
    flat = list(itertools.chain.from_iterable(shapes))
    result: Tensor = torch.ops.codetr.msda(value, flat, locations, weights)
    return result


def use_msda(choice: str, device: torch.device) -> str:
    """Choose the backend of deformable attention in this process; ``auto`` before any call.

    Args:
        choice: ``auto`` Triton on CUDA, numba on the CPU; ``triton``; ``numba``; ``torch`` one
            grid_sample per level, in operations that every device and ONNX have.
        device: where the model will run.

    Returns the backend and the reason, for the log. On CUDA a small kernel is run as a test.

    Raises:
        UserError: no such choice, or it cannot run on ``device``.
    """
    global _choice
    if choice not in CHOICES:
        raise UserError(f"ops.msda={choice}: no such choice: take one of {', '.join(CHOICES)}")
    kernel = _kernel(device) if choice == "auto" else choice
    obstacle = OBSTACLES[kernel](device) if kernel in OBSTACLES else None
    if choice == kernel and obstacle:
        raise UserError(f"ops.msda={choice} cannot run: {obstacle}; set ops.msda=auto")
    # else ``auto`` stays as it is, since a model may move to another device later
    _choice = "torch" if choice == "auto" and obstacle else choice
    if _choice == "torch":
        return f"PyTorch, grid_sample per level on {device.type} ({obstacle or 'as asked'})"
    return f"{kernel.capitalize()} kernel on {device.type}"


def _kernel(device: torch.device) -> str:
    return "triton" if device.type == "cuda" else "numba"


def _numba_obstacle(device: torch.device) -> str | None:
    """Why the numba kernel cannot run on ``device``; None if it can."""
    if device.type != "cpu":
        return f"numba needs a CPU, not {device.type}"
    return None if HAS_NUMBA else "numba is not installed, `pip install numba` does that"


def _triton_obstacle(device: torch.device) -> str | None:
    """Why the Triton kernel cannot run on ``device``; None if it can."""
    if device.type != "cuda":
        return f"Triton needs a CUDA device, not {device.type}"
    if not HAS_TRITON:
        return "Triton is not installed, `pip install triton` does that"
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.cuda and major < 7:
        return f"Triton needs compute capability 7.0, this device has {major}.{minor}"
    return _failure(device)


def _failure(device: torch.device) -> str | None:
    """Why the smallest kernel does not run on ``device``: Triton builds its launcher with a C
    compiler and Python's headers, which a machine may lack. None if it runs.
    """
    try:
        from codetr.models.ops import msda_triton

        msda_triton.run_smallest(device)
    except Exception as error:  # any error of a compiler, a driver or Triton
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        return (
            f"its smallest kernel does not run here ({reason}); Triton needs a C compiler (gcc, or "
            "the variable CC) and Python's headers (python3-dev)"
        )
    return None


OBSTACLES = {"triton": _triton_obstacle, "numba": _numba_obstacle}
"""Why a kernel cannot run on a device, by the choice that means it."""


def _has_operator(device: str) -> bool:
    if _choice == "torch" or torch.onnx.is_in_onnx_export():
        return False
    return (device == "cpu" and HAS_NUMBA) or (device == "cuda" and HAS_TRITON)


def _pairs(flat: Sequence[int]) -> Shapes:
    return tuple(zip(flat[::2], flat[1::2], strict=True))


@torch.library.custom_op("codetr::msda", mutates_args=(), device_types="cpu")
def _msda(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    from codetr.models.ops import msda_cpu  # numba takes half a second to import

    return msda_cpu.forward(value, _pairs(shapes), locations, weights)


@torch.library.custom_op("codetr::msda_backward", mutates_args=(), device_types="cpu")
def _msda_backward(
    grad_out: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from codetr.models.ops import msda_cpu

    return msda_cpu.backward(grad_out, value, _pairs(shapes), locations, weights)


@_msda.register_kernel("cuda")
def _msda_cuda(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    from codetr.models.ops import msda_triton  # Triton comes with PyTorch's CUDA builds only

    return msda_triton.forward(value, _pairs(shapes), locations, weights)


@_msda_backward.register_kernel("cuda")
def _msda_backward_cuda(
    grad_out: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from codetr.models.ops import msda_triton

    return msda_triton.backward(grad_out, value, _pairs(shapes), locations, weights)


@_msda.register_fake
def _msda_fake(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads = locations.shape[:3]
    return value.new_empty(batch, queries, heads * value.shape[3])


@_msda_backward.register_fake
def _msda_backward_fake(
    grad_out: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        locations.new_empty(locations.shape),
        weights.new_empty(weights.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    grads = torch.ops.codetr.msda_backward(grad_out, value, ctx.shapes, locations, weights)
    return grads[0], None, grads[1], grads[2]


_msda.register_autograd(_differentiate, setup_context=_save)
