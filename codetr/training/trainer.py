"""Building the Lightning Trainer from the configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from omegaconf import DictConfig, OmegaConf

from codetr.errors import UserError
from codetr.training.checkpoint_files import AtomicCheckpointIO

log = logging.getLogger(__name__)

ACCELERATION = ("compile", "channels_last")
"""Keys of the ``trainer`` group that ``codetr.training.acceleration`` applies."""


def pick_precision(precision: str | int, accelerator: str, exact: bool = False) -> str | int:
    """Resolve ``auto``: ``bf16-mixed`` on a GPU that supports bfloat16, else or with ``exact``
    ``32-true``.
    """
    if precision != "auto":
        return precision
    if exact:
        return "32-true"
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def pick_accelerator(accelerator: str) -> str:
    """``accelerator``, except that the CPU replaces Apple's GPU, which Lightning would choose for
    ``auto``: it lacks float64, which NMS of proposals and PAA's mixture model need.

    Raises UserError where only Apple's GPU could satisfy the choice.
    """
    if torch.cuda.is_available() or not torch.backends.mps.is_available():
        return accelerator
    if accelerator in ("gpu", "cuda"):
        raise UserError(
            f"trainer.accelerator={accelerator}: this machine has no CUDA GPU, and Apple's has no "
            "float64, which training needs: give trainer.accelerator=cpu"
        )
    return "cpu"


def use_tf32(choice: bool | str, exact: bool = False) -> None:
    """Allow or forbid TF32 (10-bit mantissa) in float32 matrix products and convolutions on GPUs,
    for the whole process. ``auto``: allowed unless ``exact``. Raises UserError for any other
    choice.
    """
    if choice not in ("auto", True, False):
        raise UserError(f"trainer.tf32={choice}: choose auto, true or false")
    allowed = not exact if choice == "auto" else bool(choice)
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def accumulation(effective_batch: int | None, batch_size: int, world_size: int) -> int:
    """Batches to accumulate so that an optimiser step sees ``effective_batch`` images (1 if None).

    Raises UserError where ``batch_size`` times ``world_size`` does not divide it.
    """
    if effective_batch is None:
        return 1
    at_once = batch_size * world_size
    if effective_batch < 1 or effective_batch % at_once:
        raise UserError(
            f"trainer.effective_batch={effective_batch} is not a multiple of data.batch_size="
            f"{batch_size} x {world_size} devices = {at_once}: change one of them"
        )
    return effective_batch // at_once


def build_trainer(
    cfg: DictConfig,
    batch_size: int,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger] = (),
    exact: bool = False,
) -> Trainer:
    """The Trainer of ``cfg`` (the ``trainer`` group), with gradient accumulation set. ``exact``:
    full float32, as for evaluation, where ``precision`` and ``tf32`` are ``auto``.

    ``effective_batch``, ``tf32``, ``precision: auto`` and the keys of ``ACCELERATION`` are ours,
    all others are arguments of the Trainer. Raises UserError for a strategy that spawns or forks.
    """
    options: Any = OmegaConf.to_container(cfg, resolve=True)
    for key in ACCELERATION:
        options.pop(key, None)
    effective_batch = options.pop("effective_batch")
    use_tf32(options.pop("tf32"), exact)
    options["accelerator"] = pick_accelerator(cfg.accelerator)
    options["precision"] = pick_precision(cfg.precision, cfg.accelerator, exact)
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():  # else Lightning saves and requeues in its signal handler
        plugins.append(SLURMEnvironment(auto_requeue=False))
    trainer: Trainer = instantiate(
        options,
        callbacks=list(callbacks),
        logger=list(loggers) or False,
        plugins=plugins,
        _convert_="all",
    )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UserError(
            f"trainer.strategy={options['strategy']}: training cannot be copied into its processes "
            "by spawning or forking: give trainer=ddp, which starts the command again for each"
        )
    trainer.accumulate_grad_batches = accumulation(effective_batch, batch_size, trainer.world_size)
    return trainer
