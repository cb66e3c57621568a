"""Training from Python: ``codetr.train(["data=coco", "data.root=FOLDER"])``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from codetr.checkpoints.experiment import compose_train
from codetr.errors import UserError
from codetr.run_folder import RunFolder
from codetr.training import train as training
from codetr.training.small_machine import for_this_machine

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """``metrics`` of the best checkpoint on the validation split (``AP`` ...), as in metrics.json,
    and the run's ``folder``.
    """

    metrics: Mapping[str, Any]
    folder: Path

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation AP, for ``codetr.load`` and eval.py."""
        return RunFolder(self.folder).best

    @property
    def model(self) -> Path:
        """Its detector alone."""
        return RunFolder(self.folder).detector


def train(overrides: Sequence[str] = ()) -> TrainingResult:
    """What ``python train.py OVERRIDES`` does, in this process and on one device; without a GPU
    ``experiment=finetune`` is the small recipe, too.

    Raises UserError for whatever a user can correct, and where several devices are asked for:
    they need processes of their own, which the command starts.
    """
    overrides = for_this_machine(overrides, say=log.warning)
    cfg = compose_train(overrides)
    if cfg.paths.run_dir == ".":  # not given
        cfg.paths.run_dir = str(Path(cfg.paths.runs, str(cfg.name)))
    _require_one_device(cfg)
    folder = Path(cfg.paths.run_dir)
    return TrainingResult(metrics=training.train(cfg, overrides), folder=folder)


def _require_one_device(cfg: DictConfig) -> None:
    if str(cfg.trainer.devices) != "1" or cfg.trainer.num_nodes != 1:
        raise UserError(
            f"trainer.devices={cfg.trainer.devices} trainer.num_nodes={cfg.trainer.num_nodes}: "
            "codetr.train trains on one device: set both to 1, or run codetr-train, which starts a "
            "process for each"
        )
