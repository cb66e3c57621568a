"""The device itself, and PyTorch's attention on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from codetr.models.backbones.window_attention import WindowAttention
from tools.bench.gpu.facts import Facts, kernels, longest
from tools.bench.report import hardware, versions


def env(facts: Facts) -> None:
    """Versions, and what the device reaches at best."""
    facts.tell("device", hardware(facts.device))
    for name, version in versions().items():
        facts.tell(name, version)
    try:
        import numba

        facts.tell("numba loads", numba.__version__)
    except ImportError as error:
        facts.tell("numba does not load", error)
    side, length = (8192, 2**31) if facts.on_gpu else (512, 2**24)
    kind = torch.bfloat16 if facts.on_gpu else torch.float32
    source = torch.empty(length, dtype=torch.uint8, device=facts.device)
    target = torch.empty_like(source)
    a = torch.randn(side, side, device=facts.device, dtype=kind)
    taken = facts.times({"copy": lambda: target.copy_(source), "product": lambda: a @ a})
    facts.tell("copy, read and written", f"{2 * length / taken['copy'] / 1e6:.1f} GB/s")
    words = f"product of {side} x {side} matrices in {str(kind).removeprefix('torch.')}"
    facts.tell(words, f"{2 * side**3 / taken['product'] / 1e9:.3g} TFLOP/s")


def sdpa(facts: Facts) -> None:
    """Whether sizes that were never seen cost time, with cuDNN's attention and without, in the
    decoder, whose mask differs from step to step, and in the windows of a Swin transformer.
    """
    if not facts.on_gpu:
        facts.skip("attention by cuDNN", "the CPU has no choice of kernels to compare")
        return
    part = WindowAttention(192, 6, 12).to(facts.device)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for cudnn in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            words = f"{'with' if cudnn else 'without'} cuDNN"
            _sizes(facts, f"decoder {words}", lambda n: _decoder(n, facts.device), 1500, 2)
            _sizes(facts, f"Swin windows {words}", lambda n: _windows(part, n), 400, 1)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _sizes(facts: Facts, name: str, run: Callable[[int], Tensor], size: int, step: int) -> None:
    known = facts.times({"known": lambda: run(size)})["known"]
    taken = []
    for new in range(size + step, size + 21 * step, step):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        finite = bool(run(new).isfinite().all())
        taken.append((time.perf_counter() - begun) * 1e3)
    facts.tell(f"{name}, a new size", f"{statistics.median(taken):.2f} ms, a known {known:.2f} ms")
    facts.check(f"{name}, gradients are numbers", finite)
    facts.tell(f"{name}, kernels", longest(kernels(lambda: run(size)), 3))


def _decoder(queries: int, device: torch.device) -> Tensor:
    """The gradient of self-attention among queries, some of which do not see each other."""
    x = torch.randn(3, 2, 8, queries, 32, device=device, dtype=torch.bfloat16, requires_grad=True)
    mask = torch.rand(queries, queries, device=device) > 0.3
    out = F.scaled_dot_product_attention(x[0], x[1], x[2], mask.fill_diagonal_(True))
    out.sum().backward()
    assert x.grad is not None
    return x.grad


def _windows(part: WindowAttention, number: int) -> Tensor:
    """The gradient of the input of attention within ``number`` windows of 12 x 12."""
    device = part.proj.weight.device
    x = torch.randn(1, number, 144, 192, device=device, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16):
        out = part(x, torch.zeros(number, 144, 144, device=device))
    out.float().sum().backward()
    assert x.grad is not None
    return x.grad
