"""The command ``codetr-tune``: from a configuration to a suggested setting."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from omegaconf import DictConfig, open_dict
from torch import Tensor

from codetr.checkpoints.experiment import build_record
from codetr.data.datamodule import CocoDataModule
from codetr.errors import UserError
from codetr.run_folder import RunFolder
from codetr.settings import check_settings
from codetr.training.loss_meter import FiniteGuard
from codetr.training.module import DetectionModule
from codetr.training.train import build_data, build_module, prepare_device, prepare_process
from codetr.training.trainer import build_trainer
from codetr.training.tuning.batch_size import batch_limit, batch_text, dividing, largest
from codetr.training.tuning.learning_rate import LossCurve, RangeTest, RateRange, rising
from codetr.writing import replacing

log = logging.getLogger(__name__)


def tune(cfg: DictConfig, given: Sequence[str] = ()) -> dict[str, Any]:
    """Find the setting that ``cfg.tune`` (conf/tune.yaml) names, print it, and write tune.json, and
    for a learning rate its curve, to ``cfg.paths.run_dir``; no weights are saved. Returns the
    content of tune.json.

    ``given``: the overrides that ``cfg`` was composed with. Raises UserError for what a user can
    correct.
    """
    check_settings(cfg, given)
    _require_one_new_run(cfg)
    folder = RunFolder(Path(cfg.paths.run_dir))
    prepare_process(cfg.seed)
    find = _learning_rate if cfg.tune == "lr" else _batch_size
    found, text = find(cfg, folder)
    with replacing(folder.tuning) as file:
        file.write((json.dumps(found, indent=2) + "\n").encode())
    print(text)
    return found


def _require_one_new_run(cfg: DictConfig) -> None:
    if str(cfg.trainer.devices) != "1" or cfg.trainer.num_nodes != 1:
        raise UserError(
            f"trainer.devices={cfg.trainer.devices} trainer.num_nodes={cfg.trainer.num_nodes}: "
            "codetr-tune uses one device: set both to 1; trainer.effective_batch accumulates the "
            "images of several devices"
        )
    if cfg.ckpt_path is not None:
        raise UserError(
            f"ckpt_path={cfg.ckpt_path}: codetr-tune cannot resume a run: give checkpoint=FILE to "
            "start from weights"
        )


def _learning_rate(cfg: DictConfig, folder: RunFolder) -> tuple[dict[str, Any], str]:
    """The range test of ``optimizer.lr``: content of tune.json and the line to print."""
    finder = cfg.finder
    span = RateRange(least=finder.lr_min, most=finder.lr_max, steps=finder.steps)
    if cfg.optimizer.lr == 0:
        raise UserError(
            "optimizer.lr=0: the rates of groups are multiples of it: give another rate"
        )
    curve = LossCurve(finder.divergence)
    datamodule = _data(cfg, span.steps)
    trainer = _trainer(cfg, [curve])
    module = _module(cfg, datamodule, trainer)
    module.guard = Unguarded()
    module.build_schedule = partial(rising, span=span, base=cfg.optimizer.lr)
    trainer.fit(module, datamodule=datamodule)
    test = RangeTest.of(span, curve.losses)
    suggestion = test.suggestion()
    with replacing(folder.tuning_curve) as file:
        test.figure(suggestion).savefig(file, dpi=110, format="png")
    factor = suggestion / cfg.optimizer.lr
    groups = trainer.optimizers[0].param_groups
    found = {
        "tune": "lr",
        "overrides": {"optimizer.lr": suggestion},
        "given": {"optimizer.lr": cfg.optimizer.lr},
        "groups": {group["name"]: group["initial_lr"] * factor for group in groups},
        "images_per_step": module.effective_batch,
        "rates": list(test.rates),
        "losses": list(test.losses),
    }
    return found, (
        f"optimizer.lr={suggestion:g}: the loss falls most steeply there, with "
        f"{module.effective_batch} images per step; add it to the command codetr-train; "
        f"the curve is {folder.tuning_curve}"
    )


def _batch_size(cfg: DictConfig, folder: RunFolder) -> tuple[dict[str, Any], str]:
    """The largest ``data.batch_size`` that fits; returns the same as ``_learning_rate``."""
    effective_batch, cfg.trainer.effective_batch = cfg.trainer.effective_batch, None
    datamodule = _data(cfg, cfg.finder.trial_steps)
    trainer = _trainer(cfg, [])
    images = min(len(datamodule.train_dataset), effective_batch or sys.maxsize)
    limit = batch_limit(cfg.finder.largest_batch, images, trainer.strategy.root_device)
    trial = Trial(cfg, _module(cfg, datamodule, trainer), datamodule)
    size = largest(trial.fits, limit)
    if size == 0:
        raise UserError(
            "not even data.batch_size=1 fits into memory: see Memory in docs/training.md, such as "
            "trainer.precision=bf16-mixed"
        )
    chosen = dividing(size, effective_batch)
    found = {
        "tune": "batch_size",
        "overrides": {"data.batch_size": chosen},
        "given": {"data.batch_size": cfg.data.batch_size},
        "largest_that_fits": size,
        "limit": limit,
        "tried": {str(n): fitted for n, fitted in sorted(trial.tried.items())},
        "accumulated": None if effective_batch is None else effective_batch // chosen,
    }
    return found, batch_text(size, limit, effective_batch)


class Unguarded(FiniteGuard):
    """Accepts NaN and infinite losses, with which a range test ends."""

    def watch(self, values: Tensor, step: int) -> None:
        """Do nothing."""


class Trial:
    """Trains ``module`` for a few steps at a batch size. ``tried``: whether each size did fit."""

    def __init__(
        self, cfg: DictConfig, module: DetectionModule, datamodule: CocoDataModule
    ) -> None:
        self.cfg, self.module, self.datamodule = cfg, module, datamodule
        self.tried: dict[int, bool] = {}

    def fits(self, size: int) -> bool:
        """Whether batches of ``size`` images fit into memory."""
        self.datamodule.batch_size = size
        self.tried[size] = self._trained()
        log.info("data.batch_size=%d %s", size, "fits" if self.tried[size] else "does not fit")
        self.module.zero_grad(set_to_none=True)
        garbage_collection_cuda()
        return self.tried[size]

    def _trained(self) -> bool:
        """Whether training had enough memory. Its Trainer is freed on return."""
        ema = self.cfg.callbacks.get("ema")
        trainer = _trainer(self.cfg, [] if ema is None else [instantiate(ema)])
        try:
            trainer.fit(self.module, datamodule=self.datamodule)
        except RuntimeError as error:
            if not is_oom_error(error):
                raise
            return False
        return True


def _data(cfg: DictConfig, steps: int) -> CocoDataModule:
    """The data module. Sets ``cfg.trainer`` to ``steps`` optimiser steps without validation and
    checkpoints.
    """
    datamodule, _ = build_data(cfg)
    with open_dict(cfg):
        cfg.trainer.update(max_epochs=-1, max_steps=steps, enable_checkpointing=False)
        cfg.trainer.update(limit_val_batches=0, num_sanity_val_steps=0)
    return datamodule


def _trainer(cfg: DictConfig, callbacks: Sequence[Callback]) -> Trainer:
    progress = cfg.callbacks.get("progress")
    shown = [] if progress is None else [instantiate(progress)]
    return build_trainer(cfg.trainer, cfg.data.batch_size, [*shown, *callbacks])


def _module(cfg: DictConfig, datamodule: CocoDataModule, trainer: Trainer) -> DetectionModule:
    prepare_device(cfg, trainer.strategy.root_device)
    record = build_record(cfg, datamodule.classes)
    return build_module(cfg, datamodule, record, trainer)
