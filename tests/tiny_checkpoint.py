"""A checkpoint file of a model of milliseconds, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch import nn

from codetr.checkpoints.experiment import build_record, compose_train
from codetr.checkpoints.files import DetectorFile, write_detector_file
from codetr.classes import ClassList

CLASSES = ClassList(names=("cat", "dög", "fire truck"), category_ids=(3, 17, 5))
TINY = (
    "model=deformable_detr",
    "model/backbone=resnet10_thin",
    "model.levels=3",
    "model.dim=32",
    "model.heads=2",
    "model.points=2",
    "model.hidden=32",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.num_queries=12",
    "evaluation=coco",
    f"num_classes={len(CLASSES)}",
)


def save_tiny(path: Path, *overrides: str) -> Path:
    """Write it, with scores that are spread over (0, 1)."""
    return save_checkpoint(path, [*TINY, *overrides])


def save_checkpoint(path: Path, overrides: Sequence[str]) -> Path:
    """The same of any model."""
    cfg = compose_train(overrides)
    torch.manual_seed(0)
    detector = instantiate(cfg.model.detector)
    with torch.no_grad():
        for name, value in detector.named_parameters():
            if "classify" in name or "regress" in name:
                nn.init.normal_(value, std=0.5)
    content = DetectorFile(weights=detector.state_dict(), record=build_record(cfg, CLASSES))
    write_detector_file(path, content)
    return path
