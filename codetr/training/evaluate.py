"""From a checkpoint to its metrics: what ``eval.py`` does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from codetr.checkpoints.convert import FOREIGN, OFFICIAL, open_checkpoint
from codetr.checkpoints.experiment import without_initial_weights
from codetr.checkpoints.files import DetectorFile, RunRecord
from codetr.checkpoints.plain import plain
from codetr.checkpoints.transfer import load_weights
from codetr.checkpoints.trusted import build_part, require_trusted
from codetr.classes import ClassList
from codetr.data.augment import Augmentation
from codetr.data.collate import Collate
from codetr.data.datamodule import CocoDataModule
from codetr.data.sample import as_sample
from codetr.errors import UserError
from codetr.models.detectors.protocol import MAIN
from codetr.overrides import is_within, key_of
from codetr.run_folder import RunFolder
from codetr.settings import check_settings
from codetr.settings.check import OF_RECORD, instead, require_taken, single_settings
from codetr.settings.rules import is_own
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
from codetr.training.train import prepare_device, prepare_process
from codetr.training.trainer import build_trainer

log = logging.getLogger(__name__)


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


def evaluate(cfg: DictConfig, given: Sequence[str] = ()) -> dict[str, float]:
    """Evaluate the checkpoint of ``cfg`` (conf/eval.yaml).

    The model is built as the checkpoint says (for an ``official:FILE``, as ``experiment`` says;
    ``zoo:NAME`` knows its own); data, augmentation and postprocessing are the checkpoint's too
    where ``cfg`` has none. Prints the tables; writes metrics.json, predictions.json, the diagnosis
    and pictures into ``cfg.paths.run_dir``, and gives them to the loggers of ``cfg``. ``given`` are
    the overrides that ``cfg`` was made with, so that none is ignored. Raises UserError for whatever
    a user can correct.
    """
    require_effect(given, ignored_in_evaluation(cfg.checkpoint, FOREIGN))
    check_settings(cfg, given, nulls=True)
    full, branch, datamodule, classes = open_branch(cfg, given)
    evaluator = build_evaluator(full, datamodule.val_annotations, classes, cfg.checkpoint)
    module = EvaluationModule(branch, evaluator, classes)
    panel = [] if cfg.panel is None else [instantiate(cfg.panel)]
    report = EvaluationReport(evaluator, cfg.paths.run_dir)
    loggers = [instantiate(part) for part in cfg.logger.values() if part is not None]
    trainer = build_tester(full, branch, [*panel, report], loggers)
    prepare_device(cfg, trainer.strategy.root_device)
    ranks = RunFolder(Path(cfg.paths.run_dir)).ranks
    with RankMonitor(trainer, ranks, waiting_limit_s(full), "give the same command again"):
        trainer.test(module, datamodule=datamodule, verbose=False)
    if not report.metrics:  # no batch was run, and so no hook of the report
        evaluator.compute()
    return report.metrics


def name_branch(cfg: DictConfig) -> None:
    """Set ``cfg.evaluation.branch`` to the key of its head, where it says how that was chosen."""
    heads = [part.get("heads") or {} for part in cfg.get("scheme", {}).values()]
    for own in heads:
        cfg.evaluation.branch = branch_key(cfg.evaluation.branch, own)


def build_tester(
    cfg: DictConfig,
    branch: Branch,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Trainer:
    """What runs the branch over a split; the model is run as the ``trainer`` group says, in float32
    where that leaves it open.
    """
    trainer = build_trainer(cfg.trainer, cfg.data.eval_batch_size, callbacks, loggers, exact=True)
    accelerate(branch.detector, cfg.trainer, trainer.strategy.root_device)
    return trainer


def open_branch(
    cfg: DictConfig, given: Sequence[str] = ()
) -> tuple[DictConfig, Branch, CocoDataModule, ClassList]:
    """The whole configuration, what finds objects, the split that it is to run on, and the
    classes of its labels. Raises UserError as ``evaluate``.
    """
    prepare_process(cfg.seed)
    if cfg.model is not None and not cfg.checkpoint.startswith(FOREIGN):
        raise UserError(
            f"{cfg.checkpoint}: brings its own model: leave out experiment= and model=, which are "
            f"for checkpoint={OFFICIAL}FILE"
        )
    content = open_checkpoint(cfg.checkpoint, cfg, cfg.trust)
    full = as_built(with_run(cfg, content.record, given), cfg, given)
    name_branch(full)
    looks = choose_views(cfg.views, full, cfg.checkpoint)
    datamodule = build_split(full, cfg.checkpoint)
    classes = content.record.classes
    if not content.record.ids_known:
        classes = with_ids_of(classes, datamodule.classes)
    require_known_classes(datamodule.classes, classes, datamodule.val_annotations)
    branch = looks(build_branch(full, content, cfg.checkpoint))
    return full, branch, datamodule, classes


def choose_views(chosen: DictConfig, cfg: DictConfig, source: str) -> Callable[[Branch], Branch]:
    """What makes a branch look at images as ``chosen`` (the user's ``views``) says. Where that is
    more than once, the split is read as it is in the files (``cfg.data`` changes), and every view
    is resized and normalised by itself. Raises UserError for views of an auxiliary head.
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


def batch_of_one(resize: Augmentation, collate: Collate, image: Tensor) -> Batch:
    """A uint8 image (3, H, W) as the network gets it."""
    return collate([resize(as_sample(image))])


def as_built(
    full: DictConfig, cfg: DictConfig, given: Sequence[str] = (), schemes: bool = False
) -> DictConfig:
    """What objects are made from, of a whole configuration ``full`` that a file and the user's
    ``cfg`` make up: resolved, plain and checked, and nothing besides. ``schemes``: those of the
    training too, which an auxiliary branch needs anyway.

    Raises UserError where the file names what it may not, or has no such parts, and for a setting
    of ``given`` that its parts do not take.
    """
    keys = ["data", "evaluation", "trainer", "model.detector"]
    if schemes or cfg.evaluation.branch != MAIN:
        keys.append("scheme")
    parts: dict[str, Any] = {}
    try:
        for key in keys:
            group, _, inner = key.partition(".")
            value = OmegaConf.to_container(OmegaConf.select(full, key), resolve=True)
            parts[group] = {inner: value} if inner else value
        parts["model"]["num_queries"] = OmegaConf.select(full, "model.num_queries")
    except (OmegaConfBaseException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{cfg.checkpoint}: gives no {key} to build ({reason})") from error
    checked = plain(parts, cfg.checkpoint, "configuration")
    if not cfg.trust:
        require_trusted(checked, cfg.checkpoint, cfg)
    require_taken(checked, map(_placed, single_settings(cfg, given)))
    return OmegaConf.create(checked)


def _placed(name: str) -> str:
    """Where a setting of ``OF_RECORD`` is in what ``as_built`` returns."""
    old, new = "augmentation.eval", "data.eval_augmentation"
    return new + name.removeprefix(old) if is_within(name, [old]) else name


def build_branch(cfg: DictConfig, content: DetectorFile, source: str) -> Branch:
    """What ``cfg.evaluation.branch`` names, with the weights of the checkpoint ``source``."""
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


def with_run(cfg: DictConfig, record: RunRecord, given: Sequence[str] = ()) -> DictConfig:
    """The run's configuration, changed by what ``cfg`` chooses: groups of which it has an option,
    and single settings of the others (``OF_RECORD``) where they are not null, or made null by an
    override of ``given``.

    Normalisation and padding stay the run's: they belong to the weights, not to the data. Raises
    UserError for a setting that nothing reads.
    """
    record.require_preprocessing(cfg.checkpoint)
    for keys in (("model", "detector", "backbone"), ("evaluation", "postprocess")):
        record.part(cfg.checkpoint, *keys)
    source = record.part(cfg.checkpoint, "data", "source")
    full = OmegaConf.create(dict(record.config))
    if "num_train" in source and source["num_train"] is None:
        del full.data.source["num_train"]  # of earlier runs on data=custom; it said nothing
    given_keys = single_settings(cfg, given)
    whole = {key for key, mark in OF_RECORD.items() if OmegaConf.select(cfg, mark) is not None}
    for key, value in cfg.items_ex(resolve=False):
        if value is not None and value != {} and (key not in OF_RECORD or key in whole):
            full[key] = value
    if "data" in whole:
        _take_classes(full, record.config, given)
    if "augmentation" in whole:
        full.data.eval_augmentation = full.augmentation.eval
    single = OmegaConf.create({"augmentation": {"eval": full.data.eval_augmentation}})
    change_settings(single, _part(cfg, {"augmentation"} - whole), given_keys)
    full.data.eval_augmentation = single.augmentation.eval
    change_settings(full, _part(cfg, {"data", "evaluation"} - whole), given_keys)
    full.trainer.effective_batch = None
    if full.data.get("root") is None:
        raise UserError("data.root is not set: give data.root=FOLDER")
    for key in ("mean", "std", "size_divisor"):
        full.data[key] = record.preprocessing[key]
    return full


def _part(cfg: DictConfig, groups: Iterable[str]) -> DictConfig:
    """These groups of it alone, as they are written."""
    return OmegaConf.masked_copy(cfg, [g for g in groups if cfg.get(g) is not None])


def change_settings(
    part: DictConfig, changes: DictConfig, given_keys: Sequence[str], above: str = ""
) -> None:
    """Set in ``part`` each setting of ``changes`` that is not null or is among ``given_keys``, and
    keep all others. Raises UserError for one of ``given_keys`` that nothing reads.
    """
    for key, value in changes.items_ex(resolve=False):
        name = f"{above}.{key!s}".lstrip(".")
        held = part.get(key)
        inner = held if OmegaConf.is_dict(held) else OmegaConf.create({})
        if OmegaConf.is_dict(value) and (name not in given_keys or "_target_" in inner):
            change_settings(inner, value, given_keys, name)
            if inner:
                part[key] = inner
        elif name in given_keys or value is not None:
            if not (key in part or "_target_" in part or is_own(tuple(name.split(".")))):
                known = [f"{above}.{other!s}".lstrip(".") for other in part]
                raise UserError(f"{name}: nothing reads this setting: {instead(name, known)}")
            part[key] = value


def _take_classes(full: DictConfig, run: Mapping[str, Any], given: Sequence[str]) -> None:
    """Other data are read with the classes that the run chose, unless others are chosen."""
    chosen, recorded = full.data.get("classes"), run["data"].get("classes")
    if any(is_within(key_of(override), ["data.classes"]) for override in given):
        return
    if not any(v is not None for v in (chosen or {}).values()):
        full.data.pop("classes", None)
        if recorded:
            full.data.classes = recorded


def build_split(cfg: DictConfig, source: str) -> CocoDataModule:
    """The data module, as the checkpoint ``source`` and the user say, with the evaluated split read
    and checked.
    """
    datamodule: CocoDataModule = build_part(cfg.data, source)
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
