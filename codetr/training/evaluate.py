"""From a checkpoint to its metrics: what ``eval.py`` does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from codetr.checkpoints.files import RunRecord, load_detector_weights, read_detector_file
from codetr.classes import ClassList
from codetr.data.datamodule import CocoDataModule
from codetr.errors import UserError
from codetr.evaluation import CocoEvaluator, Detections, Postprocess
from codetr.structures import Batch
from codetr.training.app import prepare_process
from codetr.training.launcher import METRICS_FILE
from codetr.training.trainer import build_trainer

log = logging.getLogger(__name__)

PREDICTIONS_FILE = "predictions.json"


class EvaluationModule(LightningModule):
    """Runs a detector over a split and collects its detections; nothing of training is here."""

    def __init__(
        self, detector: nn.Module, postprocess: Postprocess, evaluator: CocoEvaluator
    ) -> None:
        super().__init__()
        self.detector = detector
        self.postprocess = postprocess
        self.evaluator = evaluator

    def test_step(  # type: ignore[override]
        self, batch: Batch, batch_idx: int
    ) -> tuple[Detections, ...]:
        """Detections in the original images; they enter the evaluation."""
        found = self.postprocess(self.detector(batch.images), batch.images.sizes, batch.infos)
        self.evaluator.update(found, batch.infos)
        return found


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Evaluate the checkpoint of ``cfg`` (conf/eval.yaml).

    The model is built as the checkpoint says; data, augmentation and postprocessing are the
    checkpoint's too where ``cfg`` has none. Prints the COCO tables; writes metrics.json and
    predictions.json into ``cfg.paths.run_dir``. Raises UserError for whatever a user can mend.
    """
    run_dir = Path(cfg.paths.run_dir)
    prepare_process(cfg.seed)
    record = read_detector_file(cfg.checkpoint).record
    full = with_run(cfg, record)
    datamodule = build_split(full)
    require_known_classes(datamodule.classes, record.classes, datamodule.val_annotations)
    detector = instantiate(without_initial_weights(full.model.detector))
    load_detector_weights(cfg.checkpoint, detector, record.classes)
    evaluator = instantiate(full.evaluation.evaluator)(
        annotation_file=datamodule.val_annotations, classes=record.classes
    )
    module = EvaluationModule(detector, instantiate(full.evaluation.postprocess), evaluator)
    trainer = build_trainer(full.trainer, full.data.eval_batch_size, [], [])
    trainer.test(module, datamodule=datamodule, verbose=False)
    metrics: dict[str, float] = evaluator.compute()
    if trainer.is_global_zero:
        log.info("%s", evaluator.table())
        Console().print(evaluator.class_table())
    evaluator.write_metrics(run_dir / METRICS_FILE)
    evaluator.write_predictions(run_dir / PREDICTIONS_FILE)
    log.info("wrote %s and %s to %s", METRICS_FILE, PREDICTIONS_FILE, run_dir)
    return metrics


def with_run(cfg: DictConfig, record: RunRecord) -> DictConfig:
    """The run's configuration, changed by what ``cfg`` chooses (its values that are not null).

    Normalisation and padding stay the run's: they belong to the weights, not to the data.
    """
    full = OmegaConf.create(dict(record.config))
    for key, value in cfg.items_ex(resolve=False):
        if key == "data" and "_target_" not in value:
            full.data.update({k: v for k, v in value.items_ex(resolve=False) if v is not None})
        elif value is not None:
            full[key] = value
    if full.data.root is None:
        raise UserError("data.root is not set: give data.root=FOLDER")
    for key in ("mean", "std", "size_divisor"):
        full.data[key] = record.preprocessing[key]
    return full


def build_split(cfg: DictConfig) -> CocoDataModule:
    """The data module with the evaluated split read and checked."""
    datamodule: CocoDataModule = instantiate(cfg.data)
    datamodule.prepare_data()
    datamodule.setup("test")
    return datamodule


def without_initial_weights(detector: DictConfig) -> DictConfig:
    """A detector's configuration with a backbone that fetches no weights: the checkpoint has
    them all.
    """
    changes: dict[str, Any] = {"pretrained": False, "weights": None}
    known = {key: value for key, value in changes.items() if key in detector.backbone}
    return OmegaConf.merge(detector, {"backbone": known})  # type: ignore[return-value]


def require_known_classes(data: ClassList, model: ClassList, source: Path) -> None:
    """Raise UserError where the data has a category that the model does not know by this name."""
    names = dict(zip(model.category_ids, model.names, strict=True))
    for category, name in zip(data.category_ids, data.names, strict=True):
        if names.get(category) != name:
            known = names.get(category, "nothing")
            raise UserError(
                f"{source}: category {category} is '{name}' but the checkpoint knows it as "
                f"'{known}': evaluate on data with the classes that the model was trained on"
            )
