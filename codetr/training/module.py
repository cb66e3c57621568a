"""The LightningModule: trains a detector by schemes, and evaluates it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from codetr.checkpoints.files import RunRecord
from codetr.distributed import gathered
from codetr.evaluation import CocoEvaluator, Postprocess
from codetr.evaluation.detect import detect
from codetr.loss_terms import Losses, total_loss
from codetr.structures import Batch, Detections
from codetr.supervision.schemes.protocol import require_fit
from codetr.training.log_interval import FIRST_RANK_ONLY, logs_now, on_host
from codetr.training.loss_meter import TOTAL, FiniteGuard, LossMeter
from codetr.training.losses import training_losses
from codetr.training.sharding import gather

BuildOptimizer = Callable[[Iterable[tuple[str, nn.Parameter]], int], torch.optim.Optimizer]
"""(named parameters, images per optimiser step) -> optimiser."""
BuildSchedule = Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]
"""(optimiser, optimiser steps per epoch) -> schedule, stepped after every optimiser step."""


METERS, LOGGED = "loss_meters", "loggers"
"""Keys of a checkpoint for the loss sums of each process, and for the states of loggers."""


@runtime_checkable
class Resumable(Protocol):
    """A logger with a state that is stored in checkpoints, to continue after an interruption."""

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        ...


class DetectionModule(LightningModule):
    """Trains ``detector`` by ``schemes`` and evaluates ``detector(images)`` alone.

    Args:
        detector: the deployable model; an ``nn.Module`` that is a ``Detector``.
        schemes: the training schemes by name, each an ``nn.Module`` that is a ``Scheme``.
        optimizer: builds the optimiser.
        schedule: builds the learning-rate schedule.
        postprocess: converts predictions to detections in the original image.
        evaluator: computes metrics from the detections of the evaluated split.
        record: classes, preprocessing and configuration, stored in every checkpoint.
        effective_batch: images per optimiser step over all devices.
        seed: random draws depend only on it, the epoch, the batch and the rank, so that a resumed
            run has the same draws as an uninterrupted one.

    Raises UserError if the detector cannot be trained by a scheme.
    """

    def __init__(
        self,
        detector: nn.Module,
        schemes: Mapping[str, nn.Module],
        *,
        optimizer: BuildOptimizer,
        schedule: BuildSchedule,
        postprocess: Postprocess,
        evaluator: CocoEvaluator,
        record: RunRecord,
        effective_batch: int,
        seed: int,
    ) -> None:
        super().__init__()
        require_fit(detector, schemes)  # type: ignore[arg-type]
        self.detector = detector
        self.schemes = nn.ModuleDict(schemes)
        self.build_optimizer, self.build_schedule = optimizer, schedule
        self.postprocess, self.evaluator = postprocess, evaluator
        self.record, self.effective_batch, self.seed = record, effective_batch, seed
        self.meter, self.guard = LossMeter(), FiniteGuard()
        self._meters: list[dict[str, Any]] = []  # of all processes, from a checkpoint

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser for detector and schemes, and its schedule per step."""
        optimizer = self.build_optimizer(self.named_parameters(), self.effective_batch)
        self.trainer.fit_loop.setup_data()  # so that the number of batches is known
        per_epoch = math.ceil(
            self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        )
        schedule = self.build_schedule(optimizer, per_epoch)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients by the Trainer's options of these names, without synchronising with the
        device.

        Under mixed precision, Lightning refuses to clip for fused optimisers, since these may
        unscale gradients later; with bfloat16 there is no scaling.
        """
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_start(self) -> None:
        """Restore the loss sums that had not been logged when the run was interrupted."""
        if self.trainer.fit_loop.restarting and len(self._meters) == self.trainer.world_size:
            self.meter.load_state_dict(self._meters[self.global_rank], self.device)
        self._meters = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Stop on all ranks if the previous step was not finite; seed this one."""
        self.guard.check(self.meter)
        key = [self.seed, self.current_epoch, batch_idx, self.global_rank]
        seed_generators(int(np.random.SeedSequence(key).generate_state(1)[0]), self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The total loss of a batch."""
        losses: Losses = training_losses(self.detector, self.schemes, batch)  # type: ignore[arg-type]
        total = total_loss(losses)
        self.guard.watch(self.meter.update(losses, total), self.global_step)
        return total

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log mean losses every ``trainer.log_every_n_steps`` optimiser steps."""
        if logs_now(self.trainer):
            for name, value in self.meter.read().items():
                self.log(name, on_host(value), on_step=True, on_epoch=False, prog_bar=name == TOTAL)

    def on_train_epoch_end(self) -> None:
        """Log the remaining losses, and stop before a checkpoint if the last step was not
        finite.
        """
        self.guard.check(self.meter)
        means = {name: on_host(value) for name, value in self.meter.read().items()}
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=1, **FIRST_RANK_ONLY)

    def on_validation_epoch_start(self) -> None:
        """Clear the evaluator and gather sharded weights, since processes may have different
        numbers of batches. Callbacks, which may change the weights, are called before.
        """
        self.guard.check(self.meter)
        self.evaluator.reset()
        gather(self)

    def validation_step(  # type: ignore[override]
        self, batch: Batch, batch_idx: int
    ) -> tuple[Detections, ...]:
        """The detections in the original images, which are added to the evaluator."""
        found = detect(self.detector, self.postprocess, batch.images, batch.infos)
        self.evaluator.update(found, batch.infos)
        return found

    def on_validation_epoch_end(self) -> None:
        """Log ``val/AP`` and the other metrics, which are equal on all ranks."""
        values = {f"val/{name}": value for name, value in self.evaluator.compute().items()}
        self.log_dict(values, sync_dist=True, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write weights after a step that was not finite; add the record, loss sums that
        are not logged yet, and the states of loggers.
        """
        self.guard.check(self.meter)
        checkpoint[RunRecord.KEY] = self.record.as_dict()
        checkpoint[METERS] = gathered(self.meter.state_dict())
        loggers = [logger for logger in self.trainer.loggers if isinstance(logger, Resumable)]
        checkpoint[LOGGED] = [logger.state_dict() for logger in loggers]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what ``on_save_checkpoint`` added, if the file has it."""
        self._meters = checkpoint.get(METERS, [])
        loggers = [logger for logger in self.trainer.loggers if isinstance(logger, Resumable)]
        for logger, state in zip(loggers, checkpoint.get(LOGGED, []), strict=False):
            logger.load_state_dict(state)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a step on ``device`` uses.

    Unlike ``torch.manual_seed``, this does not take milliseconds to format the stack for each kind
    of accelerator that is not in use.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
