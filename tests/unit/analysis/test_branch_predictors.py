"""Every branch of a checkpoint as a predictor: what evaluation finds with each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny_checkpoint import CLASSES
from torch import Tensor, nn

from codetr.analysis.branch_predictors import branch_predictors
from codetr.checkpoints.experiment import build_record, compose_train
from codetr.checkpoints.files import DetectorFile
from codetr.data.collate import Collate
from codetr.inference.prediction import Prediction
from codetr.training.evaluate import batch_of_one, build_branch

IMAGE = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
CHOSEN = (
    *("model.dim=32", "model.hidden=32", "model.decoder_layers=2", "model.num_queries=12"),
    *("augmentation=small", "aux_heads=[atss,rcnn]", f"num_classes={len(CLASSES)}"),
)


@pytest.fixture(scope="module")
def content() -> DetectorFile:
    """Of a detector with two auxiliary heads, with random weights."""
    cfg = compose_train(CHOSEN)
    torch.manual_seed(0)
    detector = instantiate(cfg.model.detector)
    schemes = nn.ModuleDict({key: instantiate(part) for key, part in cfg.scheme.items()})
    for name, value in [*detector.named_parameters(), *schemes.named_parameters()]:
        if "classify" in name:
            nn.init.normal_(value, std=0.5)
    return DetectorFile(
        weights=detector.state_dict(),
        schemes=schemes.state_dict(),
        record=build_record(cfg, CLASSES),
    )


def found_by(content: DetectorFile, image: Tensor) -> dict[str, Prediction]:
    predictors = branch_predictors(content, "a.ckpt", device="cpu")
    return {name: branch.predict(image) for name, branch in predictors.items()}


def test_every_branch_finds_what_its_evaluation_does(content: DetectorFile) -> None:
    cfg = OmegaConf.create(dict(content.record.config))
    preprocessing = content.record.preprocessing
    collate = Collate(*(preprocessing[key] for key in ("mean", "std", "size_divisor")))
    prepare = partial(batch_of_one, instantiate(preprocessing["resize"]), collate)
    found = found_by(content, IMAGE)
    assert next(iter(found)) == "main"
    assert set(found) == {"main", "atss", "rcnn"}
    for name, seen in found.items():
        cfg.evaluation.branch = name
        branch = build_branch(cfg, content, "a.ckpt")
        branch.detector.eval()
        with torch.no_grad():
            (expected,) = branch.eval()(prepare(IMAGE))  # type: ignore[attr-defined]
        assert len(expected) > 0, name
        torch.testing.assert_close(seen.boxes_xyxy_px, expected.boxes_xyxy_px)
        torch.testing.assert_close(seen.scores, expected.scores)
        assert not seen.scores.requires_grad


def test_heads_are_there_as_far_as_the_file_has_them(content: DetectorFile) -> None:
    assert list(found_by(replace(content, schemes={}), IMAGE)) == ["main"]
    lacking = {k: v for k, v in content.schemes.items() if ".heads.atss." not in k}
    assert list(found_by(replace(content, schemes=lacking), IMAGE)) == ["main", "rcnn"]
