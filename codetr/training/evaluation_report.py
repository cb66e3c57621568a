"""The results of an evaluation as tables, files, figures and logged values."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from rich.console import Console

from codetr.evaluation import CocoEvaluator
from codetr.evaluation.diagnosis import Diagnosis, diagnose
from codetr.evaluation.error_kinds import Kind
from codetr.evaluation.report import class_names
from codetr.run_folder import RunFolder

log = logging.getLogger(__name__)


class EvaluationReport(Callback):
    """At the end of the test split, computes the metrics of ``evaluator``, prints the tables, and
    writes metrics.json, predictions.json and the files of the diagnosis to ``folder``. The
    trainer's loggers get metrics, tables and figures too. ``metrics``: by name, on all ranks.
    """

    def __init__(self, evaluator: CocoEvaluator, folder: str | Path) -> None:
        self.evaluator, self.folder = evaluator, RunFolder(Path(folder))
        self.metrics: dict[str, float] = {}

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute on all ranks, report on the first."""
        self.metrics = self.evaluator.compute()
        self.evaluator.write_metrics(self.folder.metrics)
        self.evaluator.write_predictions(self.folder.predictions)
        if self.evaluator.with_masks:
            self.evaluator.write_mask_predictions(self.folder.mask_predictions)
        if trainer.is_global_zero:
            self._report(trainer.loggers)

    def _report(self, loggers: Sequence[Logger]) -> None:
        diagnosis = diagnosed(self.evaluator)
        console = Console()
        log.info("%s", self.evaluator.table())
        console.print(self.evaluator.class_table(None if diagnosis is None else diagnosis.curves))
        pictures: list[Path] = []
        if diagnosis is not None:
            for table in (diagnosis.confusion_table(), diagnosis.error_table()):
                if table is not None:
                    console.print(table)
            log.info("%s", diagnosis.threshold_line())
            pictures = diagnosis.write(self.folder.path)
        for logger in loggers:
            logger.log_metrics({f"eval/{name}": value for name, value in self.metrics.items()})
            if isinstance(logger, WandbLogger):
                publish(logger, self.evaluator, diagnosis, pictures)
        written = [self.folder.metrics, self.folder.predictions]
        written += [self.folder.mask_predictions] if self.evaluator.with_masks else []
        written += [self.folder.diagnosis, *pictures] if diagnosis else []
        log.info("wrote %s to %s", ", ".join(path.name for path in written), self.folder.path)


def diagnosed(evaluator: CocoEvaluator) -> Diagnosis | None:
    """The diagnosis of an evaluation after ``compute``; None, with a line in the log, if there can
    be none.
    """
    found, truth, measure = evaluator.detections, evaluator.truth, evaluator.measure
    if not measure.exhaustive:
        log.info(
            "no curves, confusion matrix and kinds of errors: not every object of %s is annotated",
            evaluator.annotation_file.name,
        )
        return None
    if not any((truth[image].crowd == 0).any() for image in found):
        log.info("no curves, confusion matrix and kinds of errors: no image holds an object")
        return None
    return diagnose(found, truth, class_names(evaluator.classes), measure.lines["AP"][2])


def publish(
    logger: WandbLogger,
    evaluator: CocoEvaluator,
    diagnosis: Diagnosis | None,
    pictures: Sequence[Path],
) -> None:
    """Log the tables and figures to W&B."""
    classes = [[name, *own.values()] for name, own in evaluator.per_class.items()]
    logger.log_table("eval/per_class", ["class", "AP", "AP50", "AR"], classes)
    if diagnosis is not None:
        errors = diagnosis.errors
        rows: list[list[Any]] = [
            [kind.value, errors.count(kind), errors.cost(kind)] for kind in Kind
        ]
        logger.log_table("eval/errors", ["error", "number", "AP50 lost"], rows)
        best = diagnosis.curves.best()
        logger.log_metrics({"eval/F1": best.f1, "eval/best_threshold": best.threshold})
    for path in pictures:
        logger.log_image(key=f"pictures/{path.stem}", images=[str(path)])
