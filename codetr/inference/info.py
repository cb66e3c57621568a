"""What a model costs: parameters, operations, time and memory."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from codetr.structures import Images


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one image of ``height`` x ``width`` through a detector on ``device``.

    ``parameters`` by part of the detector; ``multiply_adds`` of matrix products, convolutions and
    attention (sampling of deformable attention and elementwise work are not counted);
    ``seconds`` the median of some runs; ``memory`` (bytes) the most that activations took, None on
    the CPU, where it cannot be told from what the process holds.
    """

    parameters: dict[str, int]
    height: int
    width: int
    device: str
    multiply_adds: int
    seconds: float
    memory: int | None

    def lines(self) -> list[str]:
        """One per fact."""
        parts = ", ".join(f"{name} {n / 1e6:.2f}" for name, n in self.parameters.items())
        lines = [
            f"parameters: {sum(self.parameters.values()):,} (millions: {parts})",
            f"one image of {self.height} x {self.width}: {self.multiply_adds / 1e9:.3g} billion "
            f"multiply-adds ({2 * self.multiply_adds / 1e9:.3g} GFLOP), without sampling and "
            "elementwise work",
            f"time on {self.device}: {self.seconds:.3g} s, {1 / self.seconds:.3g} images/s",
        ]
        if self.memory is not None:
            lines.append(f"memory on {self.device}: {self.memory / 2**30:.2f} GiB with its weights")
        return lines


def measure(detector: nn.Module, height: int, width: int, repeats: int = 3) -> Cost:
    """The cost of ``detector`` for an image of noise, where it is; it is in eval mode."""
    device = next(detector.parameters()).device
    size = torch.tensor([[height, width]], device=device)
    images = Images(
        pixels=torch.randn(1, 3, height, width, device=device),
        padding=torch.zeros(1, height, width, dtype=torch.bool, device=device),
        sizes=size,
        padded_sizes=size,
    )
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            detector(images)  # warms up, too
        seconds = [_timed(detector, images, device) for _ in range(repeats)]
    return Cost(
        parameters={name: _size(part) for name, part in detector.named_children() if _size(part)},
        height=height,
        width=width,
        device=str(device),
        multiply_adds=counter.get_total_flops() // 2,
        seconds=statistics.median(seconds),
        memory=torch.cuda.max_memory_allocated(device) if on_gpu else None,
    )


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _timed(detector: nn.Module, images: Images, device: torch.device) -> float:
    begun = time.perf_counter()
    detector(images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
