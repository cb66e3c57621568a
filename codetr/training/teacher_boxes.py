"""Detections of a checkpoint on a data set as teacher boxes (``scripts/teacher_boxes.py``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from codetr.checkpoints.convert import FOREIGN
from codetr.classes import ClassList
from codetr.distributed import is_first_rank
from codetr.errors import UserError
from codetr.evaluation.detection_metric import DetectionMetric
from codetr.evaluation.report import prediction_records, write_json
from codetr.settings import check_settings
from codetr.structures import Detections, ImageInfo
from codetr.training.evaluate import EvaluationModule, build_test_trainer, open_branch
from codetr.training.ignored_settings import REPORTED, ignored_in_evaluation, require_effect
from codetr.training.train import prepare_device

log = logging.getLogger(__name__)


class ResultFile(DetectionMetric):
    """Collects the best ``top_k`` boxes of each image (None: all) with a score of at least
    ``min_score``, and writes them as COCO results. Raises UserError where ``top_k`` is below 1.
    """

    def __init__(self, classes: ClassList, top_k: int | None, min_score: float) -> None:
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k={top_k}: give at least 1, or null for all")
        super().__init__()
        self.classes, self.top_k, self.min_score = classes, top_k, min_score

    def update(self, detections: Sequence[Detections], infos: Sequence[ImageInfo]) -> None:
        """Add the detections of a batch, best score first."""
        for found, info in zip(detections, infos, strict=True):
            kept = found.take(slice(self.top_k)).take(found.scores[: self.top_k] >= self.min_score)
            self.add(kept, info)

    def compute(self, written_ids: Mapping[int, int | str] | None = None) -> list[dict[str, Any]]:
        """COCO result records of all ranks, each image once; ``written_ids`` replace the
        image ids. All ranks must call it.
        """
        return prediction_records(self.rows_by_image(), self.classes, written_ids=written_ids)

    def write(self, path: Path, written_ids: Mapping[int, int | str] | None = None) -> int:
        """Write the records on rank 0; returns their number. All ranks must call it."""
        records = self.compute(written_ids)
        if is_first_rank():
            write_json(path, records)
        return len(records)


def write_teacher_boxes(cfg: DictConfig, given: Sequence[str] = ()) -> int:
    """Run the checkpoint of ``cfg`` (conf/teacher_boxes.yaml) over a split and write its boxes to
    ``cfg.output``; return their number. ``given``: the overrides of ``cfg``. Raises UserError for
    invalid settings, including an override that would be ignored.
    """
    require_effect(given, (*ignored_in_evaluation(cfg.checkpoint, FOREIGN), *REPORTED))
    check_settings(cfg, given, nulls=True)
    full, branch, datamodule, classes = open_branch(cfg, given)
    results = ResultFile(classes, cfg.top_k, cfg.min_score)
    trainer = build_test_trainer(full, branch)
    prepare_device(cfg, trainer.strategy.root_device)
    trainer.test(EvaluationModule(branch, results, classes), datamodule=datamodule, verbose=False)
    split = datamodule.eval_dataset.source.annotations
    written_ids = dict(zip(split.image_ids, split.written_ids, strict=True))
    number = results.write(Path(cfg.output), written_ids)
    log.info("wrote %d boxes to %s", number, cfg.output)
    return number
