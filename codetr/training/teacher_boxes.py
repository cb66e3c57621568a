"""From a checkpoint to its boxes on a data set: what ``scripts/teacher_boxes.py`` does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from codetr.checkpoints.convert import OFFICIAL
from codetr.classes import ClassList
from codetr.errors import UserError
from codetr.evaluation.gather import gather_rows, is_first_rank
from codetr.evaluation.report import prediction_records, write_json
from codetr.structures import Detections, ImageInfo
from codetr.training.evaluate import EvaluationModule, build_tester, open_branch
from codetr.training.unused import REPORTED, ignored_in_evaluation, require_effect

log = logging.getLogger(__name__)


class ResultFile:
    """Collects the best ``top_k`` boxes of every image (None: all) with a score of at least
    ``min_score``, to write them as COCO results.
    """

    def __init__(self, classes: ClassList, top_k: int | None, min_score: float) -> None:
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k={top_k}: give at least 1, or null for all")
        self.classes, self.top_k, self.min_score = classes, top_k, min_score
        self._rows: list[Tensor] = []  # image id, label, score, x, y, w, h: float64 on the CPU

    def update(self, detections: Sequence[Detections], infos: Sequence[ImageInfo]) -> None:
        """Add the detections of some images, best score first."""
        for found, info in zip(detections, infos, strict=True):
            kept = found.take(slice(self.top_k)).take(found.scores[: self.top_k] >= self.min_score)
            boxes, scores = kept.boxes_xyxy_px.cpu().double(), kept.scores.cpu().double()
            image = torch.full_like(scores, info.image_id)
            columns = torch.stack([image, kept.labels.cpu().double(), scores], dim=1)
            sides = boxes[:, 2:] - boxes[:, :2]
            self._rows.append(torch.cat([columns, boxes[:, :2], sides], dim=1))

    def write(self, path: Path) -> int:
        """Write what all ranks have, each image once, on rank 0; returns the number of boxes. All
        ranks must call it.
        """
        per_image = torch.tensor([len(rows) for rows in self._rows], dtype=torch.int64)
        counts = gather_rows(per_image[:, None])[:, 0].tolist()
        rows = gather_rows(torch.cat([torch.zeros(0, 7, dtype=torch.float64), *self._rows]))
        by_image: dict[int, Tensor] = {}
        for part in rows.split(counts):
            if len(part):  # samplers repeat images to fill the last batch
                by_image.setdefault(int(part[0, 0]), part[:, 1:])
        records = prediction_records(by_image, self.classes)
        if is_first_rank():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, records)
        return len(records)


def write_teacher_boxes(cfg: DictConfig, given: Sequence[str] = ()) -> int:
    """Run the checkpoint of ``cfg`` (conf/teacher_boxes.yaml) over a split and write its boxes to
    ``cfg.output``; returns their number. ``given`` are the overrides that ``cfg`` was made with, so
    that none is ignored. Raises UserError for whatever a user can mend.
    """
    require_effect(given, (*ignored_in_evaluation(cfg.checkpoint, OFFICIAL), *REPORTED))
    full, branch, datamodule, classes = open_branch(cfg)
    results = ResultFile(classes, cfg.top_k, cfg.min_score)
    trainer = build_tester(full, branch)
    trainer.test(EvaluationModule(branch, results, classes), datamodule=datamodule, verbose=False)
    number = results.write(Path(cfg.output))
    log.info("wrote %d boxes to %s", number, cfg.output)
    return number
