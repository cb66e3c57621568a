"""The command ``codetr-train``: from a configuration to a trained model."""

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
from codetr.training.checkpoint_files import require_fit, resume_path
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
    """Train the model of ``cfg`` (conf/train.yaml); files go to ``cfg.paths.run_dir``.

    Returns the content of metrics.json: the best checkpoint's validation metrics (``AP``, ...) with
    ``step_time_s``, ``peak_memory_gib`` and ``wall_time_s``. ``given``: the overrides that ``cfg``
    was composed with, which are checked too. Raises UserError for what a user can correct, and
    Stopped if a signal ended the run.
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
    record = build_record(cfg, classes)
    callbacks = build_callbacks(cfg)
    trainer = build_trainer(cfg.trainer, cfg.data.batch_size, callbacks)
    prepare_device(cfg, trainer.strategy.root_device)
    module = build_module(cfg, datamodule, record, trainer)
    resume = resume_path(cfg.ckpt_path, folder)
    if resume is not None:
        require_fit(resume, module)
    trainer.loggers = build_loggers(cfg)  # starts a W&B run, which a refused command should not
    write_config(cfg, folder.config)
    announce(cfg, module, trainer)
    warn_of_crowded_images(cfg, datamodule)
    continued = Continued(run_facts(cfg, module, trainer, datamodule))
    trainer.callbacks.insert(0, continued)  # type: ignore[attr-defined]
    log_config(trainer, record.config)
    log_datasets(trainer, datamodule)
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
    """Seed all generators and apply settings of the whole process."""
    seed_everything(seed, workers=True, verbose=False)
    avoid_cudnn_attention()
    configure_logging()


def prepare_device(cfg: DictConfig, device: torch.device) -> None:
    """Choose the backends of ``cfg.ops``, and configure the memory allocator on a CPU."""
    log.info("deformable attention: %s", use_msda(cfg.ops.msda, device))
    use_nms(cfg.ops.nms)
    if device.type == "cpu":
        keep_freed_memory()


def configure_logging() -> None:
    """Log on the first process only, without advice that the user cannot act on."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("lightning").handlers.clear()  # else all lines are printed twice
    for part in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{part}").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # the user's choice, in conf/data
        ".*Checkpoint directory .* exists and is not empty.*",  # as always when a run is resumed
        ".*smaller than the logging interval.*",  # the rest is logged at the epoch's end
        ".*your dataloader is not resumable.*",  # it is, by the position in the epoch
        ".*LeafSpec.*",  # Lightning uses a deprecated class of torch
        "`broadcast_buffers` is deprecated.*",  # older torch lacks the replacement
    ):
        warnings.filterwarnings("ignore", message=message)


def build_data(cfg: DictConfig) -> tuple[CocoDataModule, ClassList]:
    """The data module, prepared and set up, and its class list. Sets ``cfg.num_classes``,
    ``cfg.data.masks`` if a part learns masks, and ``cfg.schedule.epochs`` if it is a rule. Raises
    UserError for a ``cfg.num_classes`` that differs from the data.
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
    """Whether the model or an auxiliary head is trained with masks."""
    heads = (head.get("mask_head") for head in cfg.aux_heads.values())
    return cfg.model.detector.get("mask_branch") is not None or any(h is not None for h in heads)


def build_module(
    cfg: DictConfig, datamodule: CocoDataModule, record: RunRecord, trainer: Trainer
) -> DetectionModule:
    """The LightningModule with detector and schemes; ``cfg.checkpoint`` gives initial weights."""
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
    """The detector. With ``checkpoint``, no pretrained backbone weights are downloaded."""
    part = without_initial_weights(cfg.model.detector) if cfg.checkpoint else cfg.model.detector
    detector: nn.Module = instantiate(part)
    return detector


@rank_zero_only
def announce_start(cfg: DictConfig, done: Transfer) -> None:
    """Print which classes of ``checkpoint`` were copied or dropped and which are new."""
    log.info("initial weights from %s", cfg.checkpoint)
    for table in done.tables():
        Console().print(table)


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """``SafePoints``, ``BestResult``, and all callbacks and checkpoints that are not null."""
    checkpoints = dict(cfg.checkpointing)
    if not cfg.trainer.limit_val_batches:
        checkpoints.pop("best", None)  # needs a validation
    parts = [*cfg.callbacks.values(), *checkpoints.values()]
    return [SafePoints(), BestResult(), *(instantiate(part) for part in parts if part is not None)]


def build_loggers(cfg: DictConfig) -> list[Logger]:
    """The loggers of ``cfg.logger``; the CSV logger is always included."""
    loggers: list[Logger] = [instantiate(part) for part in cfg.logger.values() if part is not None]
    if not any(isinstance(logger, CsvLogger) for logger in loggers):
        loggers.append(CsvLogger(cfg.paths.run_dir))
    return loggers


@rank_zero_only
def write_config(cfg: DictConfig, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    with replacing(path) as file:
        file.write(OmegaConf.to_yaml(cfg, resolve=True).encode())


@rank_zero_only
def log_config(trainer: Trainer, config: Mapping[str, Any]) -> None:
    """Pass the resolved configuration to each logger."""
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(config))


@rank_zero_only
def log_datasets(trainer: Trainer, datamodule: CocoDataModule) -> None:
    """Pass the annotation files of both splits to the W&B logger."""
    files = [datamodule.train_dataset.source.annotations.path, datamodule.val_annotations]
    for logger in trainer.loggers:
        if isinstance(logger, GuardedWandbLogger):
            logger.log_datasets(files)


@rank_zero_only
def announce(cfg: DictConfig, module: DetectionModule, trainer: Trainer) -> None:
    """Log a summary of the run: model size, effective batch, learning rate, precision, epochs."""
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
    """Export the best detector, log its COCO table, and return the content of metrics.json."""
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
    """Training time in hours times devices, without validation; None if it was not measured."""
    if step_time_s is None:
        return None
    batches = trainer.global_step * trainer.accumulate_grad_batches
    return batches * step_time_s * trainer.world_size / 3600
