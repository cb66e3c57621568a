"""Speed and memory of training."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from codetr.structures import Batch
from codetr.training.log_interval import logs_now, on_host


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: of a GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Throughput(Callback):
    """Logs ``perf/images_per_second`` (over all devices) and ``perf/peak_memory_gib``.

    Time is the wall-clock time of the training loop with data loading, without validation, over
    many steps (kernels are asynchronous, so a single step cannot be timed without synchronising).
    ``step_time_s``, the run's mean time per batch, leaves out the first ``warmup_steps`` batches
    and covers the time before an interruption too.
    """

    def __init__(self, warmup_steps: int = 3) -> None:
        self.warmup_steps = warmup_steps
        self._seen = 0
        self._last: float | None = None
        self._interval_time, self._interval_images = 0.0, 0
        self._total_time, self._total_steps = 0.0, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._last = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: validation is not timed."""
        self._last = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Restart the clock after a validation."""
        if self._last is None:
            self._last = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Add the time of the batch, and log."""
        now = time.perf_counter()
        taken = now - (self._last or now)
        self._last = now
        self._seen += 1
        self._interval_time += taken
        self._interval_images += len(batch) * trainer.world_size
        if self._seen > self.warmup_steps:
            self._total_time += taken
            self._total_steps += 1
        if logs_now(trainer):
            rate = self._interval_images / max(self._interval_time, 1e-9)
            pl_module.log("perf/images_per_second", on_host(rate), prog_bar=True)
            pl_module.log("perf/peak_memory_gib", on_host(peak_memory_gib(pl_module.device)))
            self._interval_time, self._interval_images = 0.0, 0

    @property
    def step_time_s(self) -> float | None:
        """Mean time per batch in seconds; None before the first timed batch."""
        return self._total_time / self._total_steps if self._total_steps else None

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"time": self._total_time, "steps": self._total_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._total_time, self._total_steps = state_dict["time"], state_dict["steps"]
