"""The cost of a model: parameters, operations, time and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from codetr.checkpoints.experiment import without_initial_weights
from codetr.errors import UserError
from codetr.inference.command import open_chosen, require_used
from codetr.inference.finder import choose_device
from codetr.inference.predictor import build_detector
from codetr.settings import check_settings
from codetr.structures import Images

OF_INFO = frozenset({"checkpoint", "trust", "size", "device", "repeats", "hydra"})
OF_MODEL = frozenset({"experiment", "model", "augmentation", "num_classes"})
"""Further keys and groups that are used if there is no checkpoint."""
LANDSCAPE = (800, 1333)
"""Default height and width for recipes without a size."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a detector on ``device`` for one image of ``height`` x ``width``.

    ``parameters`` by part of the detector; ``multiply_adds`` of matrix products, convolutions and
    attention (without the sampling of deformable attention and elementwise operations);
    ``seconds``: the median of several runs; ``memory``: peak memory in bytes, None on the CPU,
    where it cannot be measured separately from the rest of the process.
    """

    parameters: dict[str, int]
    height: int
    width: int
    device: str
    multiply_adds: int
    seconds: float
    memory: int | None

    def lines(self) -> list[str]:
        """A summary for the terminal."""
        parts = ", ".join(f"{name} {n / 1e6:.2f}" for name, n in self.parameters.items())
        billions = self.multiply_adds / 1e9
        lines = [
            f"parameters: {sum(self.parameters.values()):,} (millions: {parts})",
            f"one image of {self.height} x {self.width}: {_rounded(billions)} billion "
            f"multiply-adds ({_rounded(2 * billions)} GFLOP), without sampling and "
            "elementwise work",
            f"time on {self.device}: {self.seconds:.3g} s, {1 / self.seconds:.3g} images/s",
        ]
        if self.memory is not None:
            lines.append(f"memory on {self.device}: {self.memory / 2**30:.2f} GiB with its weights")
        return lines


def info(cfg: DictConfig, given: Sequence[str] = ()) -> Cost:
    """The cost of the model of ``cfg`` (conf/info.yaml). ``given`` are the overrides that ``cfg``
    was composed with: one without effect is an error. Raises UserError for whatever a user can
    correct.
    """
    check_settings(cfg, given, nulls=True)
    used = OF_INFO if cfg.checkpoint is not None else OF_INFO | OF_MODEL
    require_used(given, used, cfg.checkpoint)
    device = choose_device(cfg.device)
    detector, resize = build(cfg)
    height, width = cfg.size or landscape(resize)
    return measure(detector.to(device).eval(), height, width, cfg.repeats)


def build(cfg: DictConfig) -> tuple[nn.Module, Mapping[str, Any]]:
    """The detector of ``cfg``, and its resize for evaluation. Raises UserError."""
    if cfg.checkpoint is not None:
        content = open_chosen(cfg)
        detector = build_detector(content, cfg.checkpoint, cfg.trust)
        return detector, content.record.preprocessing["resize"]
    if cfg.model is None:
        raise UserError("no model is chosen: give experiment=NAME, model=NAME or checkpoint=FILE")
    resize = cfg.augmentation.eval if cfg.get("augmentation") else {}
    return instantiate(without_initial_weights(cfg.model.detector)), resize


def landscape(resize: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of a wide image after ``resize``."""
    canvas = resize.get("canvas", LANDSCAPE[0])
    return resize.get("short", canvas), resize.get("long", resize.get("canvas", LANDSCAPE[1]))


def measure(detector: nn.Module, height: int, width: int, repeats: int = 3) -> Cost:
    """The cost of ``detector``, which is in eval mode, on its device for an image of noise."""
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
            detector(images)  # also serves as warm-up
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


def _rounded(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _timed(detector: nn.Module, images: Images, device: torch.device) -> float:
    start = time.perf_counter()
    detector(images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
