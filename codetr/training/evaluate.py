"""From a checkpoint to its metrics: what ``eval.py`` does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from codetr.checkpoints.convert import OFFICIAL, open_checkpoint
from codetr.checkpoints.experiment import without_initial_weights
from codetr.checkpoints.files import DetectorFile, RunRecord
from codetr.checkpoints.transfer import load_weights
from codetr.checkpoints.trusted import require_trusted
from codetr.classes import ClassList
from codetr.data.datamodule import CocoDataModule
from codetr.detectors.protocol import MAIN
from codetr.errors import UserError
from codetr.evaluation import CocoEvaluator, Detections
from codetr.ops import use_msda
from codetr.ops.cpu_memory import keep_freed_memory
from codetr.structures import Batch, ImageInfo
from codetr.training.acceleration import accelerate
from codetr.training.app import prepare_process
from codetr.training.branches import Branch, MainBranch, auxiliary_branch
from codetr.training.launcher import METRICS_FILE
from codetr.training.trainer import build_trainer

log = logging.getLogger(__name__)

PREDICTIONS_FILE = "predictions.json"
CHOSEN = {"data": "_target_", "evaluation": "evaluator"}
"""Groups of which values may be changed without choosing an option, and what each option has."""


class Collector(Protocol):
    """What takes the detections of a split, batch by batch."""

    def update(self, detections: Sequence[Detections], infos: Sequence[ImageInfo]) -> None:
        """Add the detections of some images."""
        ...


class EvaluationModule(LightningModule):
    """Runs a branch, whose labels are those of ``classes``, over a split and collects its
    detections; nothing of training is here.
    """

    def __init__(self, branch: Branch, evaluator: Collector, classes: ClassList) -> None:
        super().__init__()
        self.branch, self.evaluator, self.classes = branch, evaluator, classes

    def test_step(  # type: ignore[override]
        self, batch: Batch, batch_idx: int
    ) -> tuple[Detections, ...]:
        """Detections in the original images; they enter the evaluation."""
        found = self.branch(batch)
        self.evaluator.update(found, batch.infos)
        return found


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Evaluate the checkpoint of ``cfg`` (conf/eval.yaml).

    The model is built as the checkpoint says (for an ``official:FILE``, as ``experiment`` says;
    ``zoo:NAME`` knows its own);
    data, augmentation and postprocessing are the checkpoint's too where ``cfg`` has none. Prints
    the COCO tables; writes metrics.json, predictions.json and pictures into
    ``cfg.paths.run_dir``. Raises UserError for whatever a user can mend.
    """
    run_dir = Path(cfg.paths.run_dir)
    full, branch, datamodule, classes = open_branch(cfg)
    evaluator: CocoEvaluator = instantiate(full.evaluation.evaluator)(
        annotation_file=datamodule.val_annotations, classes=classes
    )
    module = EvaluationModule(branch, evaluator, classes)
    panel = [] if cfg.panel is None else [instantiate(cfg.panel)]
    trainer = build_tester(full, branch, panel)
    log.info("deformable attention: %s", use_msda(cfg.ops.msda, trainer.strategy.root_device))
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    trainer.test(module, datamodule=datamodule, verbose=False)
    metrics: dict[str, float] = evaluator.compute()
    if trainer.is_global_zero:
        log.info("%s", evaluator.table())
        Console().print(evaluator.class_table())
    evaluator.write_metrics(run_dir / METRICS_FILE)
    evaluator.write_predictions(run_dir / PREDICTIONS_FILE)
    log.info("wrote %s and %s to %s", METRICS_FILE, PREDICTIONS_FILE, run_dir)
    return metrics


def build_tester(cfg: DictConfig, branch: Branch, callbacks: Sequence[Callback]) -> Trainer:
    """What runs the branch over a split; the model is run as the ``trainer`` group says, in float32
    where that leaves it open.
    """
    trainer = build_trainer(cfg.trainer, cfg.data.eval_batch_size, callbacks, [], exact=True)
    accelerate(branch.detector, cfg.trainer, trainer.strategy.root_device)
    return trainer


def open_branch(cfg: DictConfig) -> tuple[DictConfig, Branch, CocoDataModule, ClassList]:
    """The whole configuration, what finds objects, the split that it is to run on, and the
    classes of its labels. Raises UserError as ``evaluate``.
    """
    prepare_process(cfg.seed)
    if cfg.model is not None and not cfg.checkpoint.startswith(OFFICIAL):
        raise UserError(
            f"{cfg.checkpoint}: brings its own model: leave out experiment= and model=, which are "
            f"for checkpoint={OFFICIAL}FILE"
        )
    content = open_checkpoint(cfg.checkpoint, cfg, cfg.trust)
    full = with_run(cfg, content.record)
    if not cfg.trust:
        require_trusted(built(full), cfg.checkpoint, OmegaConf.to_container(cfg))
    datamodule = build_split(full)
    classes = content.record.classes
    if not content.record.ids_known:
        classes = with_ids_of(classes, datamodule.classes)
    require_known_classes(datamodule.classes, classes, datamodule.val_annotations)
    return full, build_branch(full, content), datamodule, classes


def built(cfg: DictConfig) -> list[Any]:
    """What objects are made from here, of a whole configuration."""
    schemes = [] if cfg.evaluation.branch == MAIN else [cfg.scheme]
    return [cfg.data, cfg.model.detector, cfg.evaluation, cfg.trainer, *schemes]


def build_branch(cfg: DictConfig, content: DetectorFile) -> Branch:
    """What ``cfg.evaluation.branch`` names, with the weights of the checkpoint."""
    detector = instantiate(without_initial_weights(cfg.model.detector))
    name, classes = cfg.evaluation.branch, content.record.classes
    if name == MAIN:
        load_weights(content, cfg.checkpoint, detector, classes)
        return MainBranch(detector, instantiate(cfg.evaluation.postprocess))
    schemes: dict[str, nn.Module] = {key: instantiate(part) for key, part in cfg.scheme.items()}
    load_weights(content, cfg.checkpoint, detector, classes, nn.ModuleDict(schemes))
    return auxiliary_branch(name, detector, schemes, tuple(content.schemes))


def with_run(cfg: DictConfig, record: RunRecord) -> DictConfig:
    """The run's configuration, changed by what ``cfg`` chooses (its values that are not null).

    Normalisation and padding stay the run's: they belong to the weights, not to the data.
    """
    full = OmegaConf.create(dict(record.config))
    source = full.data.source
    if "num_train" in source and source.num_train is None:
        del source["num_train"]  # of earlier runs on data=custom; it said nothing
    for key, value in cfg.items_ex(resolve=False):
        if key in CHOSEN and CHOSEN[key] not in value:
            full[key].update({k: v for k, v in value.items_ex(resolve=False) if v is not None})
        elif value is not None and value != {}:
            full[key] = value
    full.trainer.effective_batch = None
    if full.data.get("root") is None:
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


def with_ids_of(model: ClassList, data: ClassList) -> ClassList:
    """The model's classes with the category ids that the data has for their names; classes that
    the data lacks get ids that it does not use.
    """
    own = dict(zip(data.names, data.category_ids, strict=True))
    free = count(max(data.category_ids, default=0) + 1)
    ids = tuple(own[name] if name in own else next(free) for name in model.names)
    return ClassList(names=model.names, category_ids=ids)


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
