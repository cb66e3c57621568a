"""Building the evaluator from the configuration."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from codetr.checkpoints.trusted import build_part
from codetr.classes import ClassList
from codetr.evaluation import CocoEvaluator
from codetr.evaluation.limits import Limit, exceeded
from codetr.models.detectors.protocol import MAIN

log = logging.getLogger(__name__)


def build_evaluator(
    cfg: DictConfig, annotation_file: Path, classes: ClassList, source: str
) -> CocoEvaluator:
    """The evaluator that ``cfg.evaluation`` defines; ``source`` is what error messages call
    ``cfg``. Warns of images with more objects than the evaluator counts, the postprocessing
    returns, or the model has queries.
    """
    chosen = cfg.evaluation.get("max_detections")  # runs of earlier versions do not have it
    chosen = OmegaConf.to_object(chosen) if OmegaConf.is_list(chosen) else chosen
    evaluator: CocoEvaluator = build_part(cfg.evaluation.evaluator, source)(
        annotation_file=annotation_file,
        classes=classes,
        **({} if chosen is None else {"max_detections": chosen}),
        **({"masks": True} if finds_masks(cfg) else {}),
    )
    limits = [evaluator.measure.limit, *(model_limits(cfg) if is_main(cfg) else [])]
    for line in exceeded(limits, evaluator.truth):
        rank_zero_only(log.warning)(line)
    return evaluator


def finds_masks(cfg: DictConfig) -> bool:
    """Whether the evaluated branch predicts masks and their evaluation is not switched off."""
    if cfg.evaluation.get("masks") is False:
        return False
    if is_main(cfg):
        return cfg.model.detector.get("mask_branch") is not None
    heads = (part.get("heads") or {} for part in cfg.scheme.values())
    name = cfg.evaluation.branch
    return any(name in own and own[name].get("mask_head") is not None for own in heads)


def is_main(cfg: DictConfig) -> bool:
    """Whether the main branch, not an auxiliary head, is evaluated."""
    return bool(cfg.evaluation.get("branch", MAIN) == MAIN)


def model_limits(cfg: DictConfig) -> list[Limit]:
    """Limits by the postprocessing and the number of queries, where the configuration has them."""
    limits = []
    kept = cfg.evaluation.postprocess.get("max_detections")
    if isinstance(kept, int):
        key = "evaluation.postprocess.max_detections"
        limits.append(Limit(key=key, most=kept, remedy="raise it"))
    queries = cfg.model.get("num_queries")
    if isinstance(queries, int):
        remedy = "train with more queries"
        limits.append(Limit(key="model.num_queries", most=queries, remedy=remedy))
    return limits
