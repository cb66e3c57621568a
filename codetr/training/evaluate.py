"""From a checkpoint to its metrics: what ``eval.py`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from codetr.checkpoints.convert import FOREIGN, OFFICIAL, open_checkpoint
from codetr.checkpoints.experiment import without_initial_weights
from codetr.checkpoints.files import DetectorFile
from codetr.checkpoints.transfer import load_weights
from codetr.checkpoints.trusted import build_part
from codetr.classes import ClassList, with_ids_of
from codetr.data.augment import Augmentation
from codetr.data.collate import Collate
from codetr.data.datamodule import CocoDataModule
from codetr.data.prepare import prepared
from codetr.data.regions import Regions
from codetr.errors import UserError
from codetr.models.detectors.protocol import MAIN
from codetr.run_folder import RunFolder
from codetr.settings import check_settings
from codetr.structures import Batch, Detections, ImageInfo
from codetr.training.acceleration import accelerate
from codetr.training.branches import (
    Branch,
    MainBranch,
    ViewedBranch,
    auxiliary_branch,
    branch_key,
)
from codetr.training.evaluation_report import EvaluationReport
from codetr.training.evaluators import build_evaluator
from codetr.training.ignored_settings import ignored_in_evaluation, require_effect
from codetr.training.rank_monitor import RankMonitor, waiting_limit_s
from codetr.training.recorded_config import as_built, with_run
from codetr.training.train import prepare_device, prepare_process
from codetr.training.trainer import build_trainer


class Collector(Protocol):
    """Collects the detections of a split, batch by batch."""

    def update(self, detections: Sequence[Detections], infos: Sequence[ImageInfo]) -> None:
        """Add the detections of some images."""
        ...


class EvaluationModule(LightningModule):
    """Runs a branch, whose labels refer to ``classes``, on a split and collects its detections."""

    def __init__(self, branch: Branch, evaluator: Collector, classes: ClassList) -> None:
        super().__init__()
        self.branch, self.evaluator, self.classes = branch, evaluator, classes

    def test_step(  # type: ignore[override]
        self, batch: Batch, batch_idx: int
    ) -> tuple[Detections, ...]:
        """The detections in the original images, which are added to the evaluator."""
        found = self.branch(batch)
        self.evaluator.update(found, batch.infos)
        return found


def evaluate(cfg: DictConfig, given: Sequence[str] = ()) -> dict[str, float]:
    """Evaluate the checkpoint of ``cfg`` (conf/eval.yaml).

    The model is built from the checkpoint's configuration (for an ``official:FILE`` from
    ``experiment``, for ``zoo:NAME`` from the zoo's); data, augmentation and postprocessing default
    to the checkpoint's. Prints the tables; writes metrics.json, predictions.json, the diagnosis and
    pictures to ``cfg.paths.run_dir``, and passes them to the loggers of ``cfg``. ``given`` are the
    overrides that ``cfg`` was composed with: one without effect is an error. Raises UserError for
    whatever a user can correct.
    """
    require_effect(given, ignored_in_evaluation(cfg.checkpoint, FOREIGN))
    check_settings(cfg, given, nulls=True)
    full, branch, datamodule, classes = open_branch(cfg, given)
    evaluator = build_evaluator(full, datamodule.val_annotations, classes, cfg.checkpoint)
    module = EvaluationModule(branch, evaluator, classes)
    panel = [] if cfg.panel is None else [instantiate(cfg.panel)]
    report = EvaluationReport(evaluator, cfg.paths.run_dir)
    loggers = [instantiate(part) for part in cfg.logger.values() if part is not None]
    trainer = build_test_trainer(full, branch, [*panel, report], loggers)
    prepare_device(cfg, trainer.strategy.root_device)
    ranks = RunFolder(Path(cfg.paths.run_dir)).ranks
    with RankMonitor(trainer, ranks, waiting_limit_s(full), "give the same command again"):
        trainer.test(module, datamodule=datamodule, verbose=False)
    if not report.metrics:  # no batch was run, and so no hook of the report
        evaluator.compute()
    return report.metrics


def resolve_branch(cfg: DictConfig) -> None:
    """Replace ``cfg.evaluation.branch`` by the key of the head, if it is the option that
    chose it.
    """
    heads = [part.get("heads") or {} for part in cfg.get("scheme", {}).values()]
    for own in heads:
        cfg.evaluation.branch = branch_key(cfg.evaluation.branch, own)


def build_test_trainer(
    cfg: DictConfig,
    branch: Branch,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Trainer:
    """A Trainer to run the branch on a split, with the settings of the ``trainer`` group; the
    default precision is float32.
    """
    trainer = build_trainer(cfg.trainer, cfg.data.eval_batch_size, callbacks, loggers, exact=True)
    accelerate(branch.detector, cfg.trainer, trainer.strategy.root_device)
    return trainer


def open_branch(
    cfg: DictConfig, given: Sequence[str] = ()
) -> tuple[DictConfig, Branch, CocoDataModule, ClassList]:
    """The full configuration, the branch to evaluate, the data with the evaluated split, and the
    classes of the branch's labels. Raises UserError as ``evaluate``.
    """
    prepare_process(cfg.seed)
    if cfg.model is not None and not cfg.checkpoint.startswith(FOREIGN):
        raise UserError(
            f"{cfg.checkpoint}: brings its own model: leave out experiment= and model=, which are "
            f"for checkpoint={OFFICIAL}FILE"
        )
    content = open_checkpoint(cfg.checkpoint, cfg, cfg.trust)
    full = as_built(with_run(cfg, content.record, given), cfg, given)
    resolve_branch(full)
    with_views = choose_views(cfg.views, full, cfg.checkpoint)
    datamodule = build_split(full, cfg.checkpoint)
    classes = with_ids_of(content.record.classes, datamodule.classes, datamodule.val_annotations)
    branch = with_views(build_branch(full, content, cfg.checkpoint))
    return full, branch, datamodule, classes


def choose_views(chosen: DictConfig, cfg: DictConfig, source: str) -> Callable[[Branch], Branch]:
    """A function that wraps a branch so that it uses the user's ``views`` (``chosen``). With
    several views, ``cfg.data`` is changed to load the split without preprocessing, and every view
    is resized and normalised separately. Raises UserError for views of an auxiliary head.
    """
    views = instantiate(OmegaConf.to_container(chosen, resolve=True))
    if views.single:
        return lambda branch: branch
    name = cfg.evaluation.branch
    if name != MAIN:
        raise UserError(
            f"evaluation.branch={name}: auxiliary heads are evaluated on one view: leave out views"
        )
    data = cfg.data
    resize: Any = OmegaConf.to_container(data.eval_augmentation, resolve=True)
    collate = Collate(data.mean, data.std, data.size_divisor)
    prepare = [
        partial(batch_of_one, build_part(one, source), collate)
        for one in views.resizes(resize, source)
    ]
    compose = partial(views.compose, limit=cfg.evaluation.postprocess.max_detections)
    data.eval_augmentation = {"_target_": "codetr.data.augment.Chain"}
    data.mean, data.std, data.size_divisor = [0, 0, 0], [1, 1, 1], 1
    return lambda branch: ViewedBranch(branch, prepare, compose)


def batch_of_one(resize: Augmentation, collate: Collate, image: Regions) -> Batch:
    """The network's input for a uint8 image (3, H, W)."""
    return collate([prepared(image, resize)])


def build_branch(cfg: DictConfig, content: DetectorFile, source: str) -> Branch:
    """The branch ``cfg.evaluation.branch`` with the weights of the checkpoint ``source``."""
    detector = build_part(without_initial_weights(cfg.model.detector), source)
    name, classes = cfg.evaluation.branch, content.record.classes
    if name == MAIN:
        load_weights(content, source, detector, classes)
        return MainBranch(detector, build_part(cfg.evaluation.postprocess, source))
    schemes: dict[str, nn.Module] = {
        key: build_part(part, source) for key, part in cfg.scheme.items()
    }
    load_weights(content, source, detector, classes, nn.ModuleDict(schemes))
    return auxiliary_branch(name, detector, schemes, tuple(content.schemes))


def build_split(cfg: DictConfig, source: str) -> CocoDataModule:
    """The data module of the configuration, with the evaluated split loaded and checked. ``source``
    is the checkpoint's name in messages.
    """
    datamodule: CocoDataModule = build_part(cfg.data, source)
    datamodule.prepare_data()
    datamodule.setup("test")
    return datamodule
