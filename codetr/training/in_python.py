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
from codetr.training.error_lines import one_line
from codetr.training.small_machine import for_this_machine

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """``metrics``: the content of metrics.json, with the validation ``AP`` ... of the best
    checkpoint; ``folder``: the run folder.
    """

    metrics: Mapping[str, Any]
    folder: Path

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation AP, for ``codetr.load`` and eval.py."""
        return RunFolder(self.folder).best

    @property
    def model(self) -> Path:
        """The file of its detector alone."""
        return RunFolder(self.folder).detector


def train(overrides: Sequence[str] = ()) -> TrainingResult:
    """Train in this process on one device, as ``codetr-train OVERRIDES`` does. Without a GPU,
    ``experiment=finetune`` is likewise replaced by the small recipe.

    Raises UserError for what a user can correct, and for more than one device: only the command
    starts further processes.
    """
    if not isinstance(overrides, list | tuple):
        raise UserError(
            f"settings of type {type(overrides).__name__}: give a list of them: "
            "['data=custom', 'data.root=FOLDER']"
        )
    try:
        return _train(for_this_machine(overrides, say=log.warning))
    except Exception as error:
        text = one_line(error)
        if text is None or isinstance(error, UserError):
            raise
        raise UserError(text) from error


def _train(overrides: Sequence[str]) -> TrainingResult:
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
