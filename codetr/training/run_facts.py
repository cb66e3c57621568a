"""Warnings about settings of a run that the user may not expect."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from codetr.data.datamodule import CocoDataModule
from codetr.training.module import DetectionModule

log = logging.getLogger(__name__)


class Continued(Callback):
    """Saves the ``facts`` of a run in its checkpoints, and warns if they differ when the run is
    resumed.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = dict(facts)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return dict(self.facts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the facts of the resumed run."""
        different = [
            f"{name}: {state_dict[name]}, now {value}"
            for name, value in self.facts.items()
            if name in state_dict and state_dict[name] != value
        ]
        if different:
            rank_zero_only(log.warning)(
                "the resumed run had other settings: %s. Give the settings of its start, or begin "
                "a new run with checkpoint= instead of ckpt_path=",
                "; ".join(different),
            )


def run_facts(
    cfg: DictConfig, module: DetectionModule, trainer: Trainer, datamodule: CocoDataModule
) -> dict[str, Any]:
    """The facts that should not change on resuming, by name, as plain values."""
    return {
        "images per step": module.effective_batch,
        "data.batch_size": cfg.data.batch_size,
        "devices": trainer.world_size,
        "schedule.epochs": trainer.max_epochs,
        "learning rate": float(f"{learning_rate(cfg, module.effective_batch):g}"),
        "data.root": str(cfg.data.root),
        "training images": len(datamodule.train_dataset),
        "classes": ", ".join(datamodule.classes.names),
        "seed": cfg.seed,
        "precision": str(trainer.precision),
    }


def learning_rate(cfg: DictConfig, effective_batch: int) -> float:
    """The learning rate for ``effective_batch`` images per optimiser step."""
    rate: float = cfg.optimizer.lr
    if cfg.optimizer.scale_lr_with_batch:
        rate *= effective_batch / cfg.optimizer.base_batch
    return rate


@rank_zero_only
def warn_of_crowded_images(cfg: DictConfig, datamodule: CocoDataModule) -> None:
    """Warn of images with more objects than the model has queries."""
    tables = OmegaConf.select(cfg, "model.num_patterns") or 1  # queries per anchor
    queries = (OmegaConf.select(cfg, "model.num_queries") or 0) * tables
    annotations = datamodule.train_dataset.source.annotations
    counts = torch.bincount(annotations.image_of_box[annotations.usable], minlength=1)
    crowded = int((counts > queries).sum()) if queries else 0
    if crowded:
        first = annotations.file_names[int(counts.argmax())]
        log.warning(
            "%d images have more objects than the %d queries of the model, which cannot find them "
            "all: %s has %d. Raise model.num_queries, and "
            "evaluation.postprocess.max_detections with it",
            *(crowded, queries, first, int(counts.max())),
        )
