"""From a configuration to a trained model: what ``train.py`` does, in order."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from codetr.checkpoints.convert import open_checkpoint
from codetr.checkpoints.experiment import build_record, without_initial_weights
from codetr.checkpoints.files import RunRecord, export_detector
from codetr.checkpoints.transfer import Transfer, load_weights
from codetr.classes import ClassList
from codetr.data.datamodule import CocoDataModule
from codetr.errors import UserError
from codetr.models.ops import avoid_cudnn_attention, use_msda
from codetr.models.ops.cpu_memory import keep_freed_memory
from codetr.run_folder import RunFolder
from codetr.settings import check_settings
from codetr.suppression import use_nms
from codetr.training.acceleration import accelerate
from codetr.training.callbacks import BestResult, SafePoints, Throughput
from codetr.training.callbacks.speed import peak_memory_gib
from codetr.training.checkpoint_files import resume_path
from codetr.training.csv_logger import CsvLogger
from codetr.training.evaluators import build_evaluator
from codetr.training.module import DetectionModule
from codetr.training.optim import can_fuse
from codetr.training.rank_monitor import RankMonitor, waiting_limit_s
from codetr.training.run_facts import Continued, learning_rate, run_facts, warn_of_crowded_images
from codetr.training.stopping import Stopped, StopSignals, next_command
from codetr.training.trainer import build_trainer
from codetr.training.wandb_logger import GuardedWandbLogger
from codetr.writing import remove_parts, replacing

log = logging.getLogger(__name__)


def train(cfg: DictConfig, given: Sequence[str] = ()) -> dict[str, Any]:
    """Train what ``cfg`` (conf/train.yaml) describes; files go to ``cfg.paths.run_dir``.

    Returns the best checkpoint's validation metrics (``AP``, ...) with ``step_time_s``,
    ``peak_memory_gib`` and ``wall_time_s``, which metrics.json has too. ``given`` are the overrides
    that ``cfg`` was made with, so that none is ignored. Raises UserError for whatever a user can
    mend, and Stopped where a signal ended the run.
    """
    try:
        with StopSignals():
            return _train(cfg, given)
    except Stopped as stopped:
        stopped.next_command, stopped.quiet = next_command(cfg, given), rank_zero_only.rank != 0  # type: ignore[attr-defined]
        raise


def _train(cfg: DictConfig, given: Sequence[str]) -> dict[str, Any]:
    start = time.perf_counter()
    check_settings(cfg, given)
    folder = RunFolder(Path(cfg.paths.run_dir))
    prepare_process(cfg.seed)
    datamodule, classes = build_data(cfg)
    for written in (folder.path, folder.epochs):
        rank_zero_only(remove_parts)(written)
    write_config(cfg, folder.config)
    record = build_record(cfg, classes)
    callbacks = build_callbacks(cfg)
    trainer = build_trainer(cfg.trainer, cfg.data.batch_size, callbacks, build_loggers(cfg))
    prepare_device(cfg, trainer.strategy.root_device)
    module = build_module(cfg, datamodule, record, trainer)
    announce(cfg, module, trainer)
    warn_of_crowded_images(cfg, datamodule)
    continued = Continued(run_facts(cfg, module, trainer, datamodule))
    trainer.callbacks.insert(0, continued)  # type: ignore[attr-defined]
    log_config(trainer, record.config)
    log_datasets(trainer, datamodule)
    resume = resume_path(cfg.ckpt_path, folder)
    advice = f"continue with `{next_command(cfg, given)}`"
    with RankMonitor(trainer, folder.ranks, waiting_limit_s(cfg), advice):
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    metrics = finish(trainer, module, callbacks, folder)
    metrics["wall_time_s"] = time.perf_counter() - start
    if trainer.is_global_zero:
        with replacing(folder.metrics) as file:
            file.write((json.dumps(metrics, indent=2) + "\n").encode())
    return metrics


def prepare_process(seed: int) -> None:
    """Seed everything, and settings that hold for a whole process."""
    seed_everything(seed, workers=True, verbose=False)
    avoid_cudnn_attention()
    configure_logging()


def prepare_device(cfg: DictConfig, device: torch.device) -> None:
    """Choose the backend of ``cfg.ops`` and log it; configure the CPU's memory."""
    log.info("deformable attention: %s", use_msda(cfg.ops.msda, device))
    use_nms(cfg.ops.nms)
    if device.type == "cpu":
        keep_freed_memory()


def configure_logging() -> None:
    """Log from the first process alone, without advice that the user cannot act on."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("lightning").handlers.clear()  # it would print everything a second time
    for part in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{part}").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # the user's choice, in conf/data
        ".*Checkpoint directory .* exists and is not empty.*",  # so it is when a run is resumed
        ".*smaller than the logging interval.*",  # the rest of an epoch is logged at its end
        ".*your dataloader is not resumable.*",  # it is, by the position in the epoch
        ".*LeafSpec.*",  # Lightning's use of torch
        "`broadcast_buffers` is deprecated.*",  # not every torch has its successor
    ):
        warnings.filterwarnings("ignore", message=message)


def build_data(cfg: DictConfig) -> tuple[CocoDataModule, ClassList]:
    """The data module with its files in place, and its class list; sets ``cfg.num_classes``,
    ``cfg.data.masks`` where something learns them, and ``cfg.schedule.epochs`` where a rule stands
    there.
    """
    if learns_masks(cfg):
        cfg.data.masks = True
    datamodule: CocoDataModule = instantiate(cfg.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    classes: ClassList = datamodule.classes
    if cfg.num_classes not in (None, len(classes)):
        raise UserError(
            f"num_classes={cfg.num_classes}, but the data has {len(classes)} classes: leave "
            "num_classes out, which is read from the annotations"
        )
    cfg.num_classes = len(classes)
    if OmegaConf.is_dict(cfg.schedule.epochs):
        images = len(datamodule.train_dataset)
        cfg.schedule.epochs = instantiate(cfg.schedule.epochs)(images)
        log.info("%d epochs at most for %d training images", cfg.schedule.epochs, images)
    return datamodule, classes


def learns_masks(cfg: DictConfig) -> bool:
    """Whether a part of the model or of its schemes needs the masks of training images."""
    heads = (head.get("mask_head") for head in cfg.aux_heads.values())
    return cfg.model.detector.get("mask_branch") is not None or any(h is not None for h in heads)


def build_module(
    cfg: DictConfig, datamodule: CocoDataModule, record: RunRecord, trainer: Trainer
) -> DetectionModule:
    """Detector and schemes (with initial weights if ``checkpoint`` names a file), and the rest."""
    detector = build_detector(cfg)
    schemes: dict[str, nn.Module] = {name: instantiate(part) for name, part in cfg.scheme.items()}
    if cfg.checkpoint:
        content = open_checkpoint(cfg.checkpoint, cfg, cfg.trust)
        held = nn.ModuleDict(schemes)
        announce_start(cfg, load_weights(content, cfg.checkpoint, detector, record.classes, held))
    accelerate(detector, cfg.trainer, trainer.strategy.root_device)
    return DetectionModule(
        detector,
        schemes,
        optimizer=instantiate(cfg.optimizer, _convert_="all", fused=can_fuse(trainer.precision)),
        schedule=instantiate(cfg.schedule, _convert_="all"),
        postprocess=instantiate(cfg.evaluation.postprocess),
        evaluator=build_evaluator(
            cfg, datamodule.val_annotations, record.classes, "the configuration"
        ),
        record=record,
        effective_batch=cfg.data.batch_size * trainer.world_size * trainer.accumulate_grad_batches,
        seed=cfg.seed,
    )


def build_detector(cfg: DictConfig) -> nn.Module:
    """The detector alone; where ``checkpoint`` has all its weights, none are fetched for it."""
    part = without_initial_weights(cfg.model.detector) if cfg.checkpoint else cfg.model.detector
    detector: nn.Module = instantiate(part)
    return detector


@rank_zero_only
def announce_start(cfg: DictConfig, done: Transfer) -> None:
    """Say what the weights of ``checkpoint`` became: classes copied, new and dropped."""
    log.info("initial weights from %s", cfg.checkpoint)
    for table in done.tables():
        Console().print(table)


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """Where the run may be kept, the best result, callbacks that are not null, the checkpoints."""
    checkpoints = dict(cfg.checkpointing)
    if not cfg.trainer.limit_val_batches:
        checkpoints.pop("best", None)  # without validation there is no best one
    parts = [*cfg.callbacks.values(), *checkpoints.values()]
    return [SafePoints(), BestResult(), *(instantiate(part) for part in parts if part is not None)]


def build_loggers(cfg: DictConfig) -> list[Logger]:
    """The loggers of ``cfg.logger``, and the CSV logger in any case."""
    loggers: list[Logger] = [instantiate(part) for part in cfg.logger.values() if part is not None]
    if not any(isinstance(logger, CsvLogger) for logger in loggers):
        loggers.append(CsvLogger(cfg.paths.run_dir))
    return loggers


@rank_zero_only
def write_config(cfg: DictConfig, path: Path) -> None:
    """Write the resolved configuration."""
    with replacing(path) as file:
        file.write(OmegaConf.to_yaml(cfg, resolve=True).encode())


@rank_zero_only
def log_config(trainer: Trainer, config: Mapping[str, Any]) -> None:
    """Give every logger the resolved configuration."""
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(config))


@rank_zero_only
def log_datasets(trainer: Trainer, datamodule: CocoDataModule) -> None:
    """Give W&B the annotation files of both splits, where its logger asks for them."""
    files = [datamodule.train_dataset.source.annotations.path, datamodule.val_annotations]
    for logger in trainer.loggers:
        if isinstance(logger, GuardedWandbLogger):
            logger.log_datasets(files)


@rank_zero_only
def announce(cfg: DictConfig, module: DetectionModule, trainer: Trainer) -> None:
    """Log what is about to be trained, and the numbers that are most often wrong."""
    rate = learning_rate(cfg, module.effective_batch)
    parameters = sum(p.numel() for p in module.detector.parameters())
    extra = sum(p.numel() for p in module.schemes.parameters())
    log.info("run folder %s", cfg.paths.run_dir)
    log.info(
        "detector with %.2f million parameters, %.2f million more for training in %s",
        parameters / 1e6,
        extra / 1e6,
        ", ".join(module.schemes) or "no scheme",
    )
    log.info(
        "%s: effective batch %d (%d images x %d devices x %d accumulated), learning rate %g, "
        "precision %s, %s epochs",
        trainer.strategy.root_device.type,
        module.effective_batch,
        cfg.data.batch_size,
        trainer.world_size,
        trainer.accumulate_grad_batches,
        rate,
        trainer.precision,
        trainer.max_epochs,
    )


def finish(
    trainer: Trainer, module: DetectionModule, callbacks: Sequence[Callback], folder: RunFolder
) -> dict[str, Any]:
    """Export the best detector, print its COCO table, and collect what metrics.json says."""
    best = next(c for c in callbacks if isinstance(c, BestResult))
    speed = next((c for c in callbacks if isinstance(c, Throughput)), None)
    if trainer.is_global_zero:
        source = next((p for p in (folder.best, folder.last) if p.is_file()), None)
        if source is not None:
            export_detector(source, folder.detector)
        if best.table:
            log.info("best validation, of epoch %d:\n%s", best.epoch, best.table)
    return {
        **best.metrics,
        "epoch": best.epoch,
        "steps": trainer.global_step,
        "step_time_s": speed.step_time_s if speed else None,
        "device_hours": device_hours(trainer, speed.step_time_s if speed else None),
        "peak_memory_gib": peak_memory_gib(module.device),
    }


def device_hours(trainer: Trainer, step_time_s: float | None) -> float | None:
    """Hours of training times devices, validation left out; None where the time is not known."""
    if step_time_s is None:
        return None
    batches = trainer.global_step * trainer.accumulate_grad_batches
    return batches * step_time_s * trainer.world_size / 3600
