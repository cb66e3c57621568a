"""What every file in conf/experiment, conf/model, conf/schedule ... owes."""

import pytest
import torch
from hydra.utils import instantiate
from tiny import CONF, composed, options

EXPERIMENTS = options("experiment")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_builds_at_full_size(experiment: str) -> None:
    overrides = [
        f"experiment={experiment}",
        "num_classes=80",
        "model.backbone.pretrained=false",
        "data.root=nowhere",
    ]
    cfg = composed(overrides)
    with torch.device("meta"):
        detector = instantiate(cfg.model.detector)
        schemes = {name: instantiate(part) for name, part in cfg.scheme.items()}
    assert sum(p.numel() for p in detector.parameters()) > 4e7
    assert schemes
    assert cfg.trainer.effective_batch == 16


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_opens_with_how_to_run_it_and_what_was_published(experiment: str) -> None:
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"python train.py experiment={experiment}" in lines[1]
    assert "AP" in lines[1]


@pytest.mark.parametrize("group", ["model", "schedule", "optimizer", "augmentation", "callbacks"])
def test_every_option_composes(group: str) -> None:
    for option in options(group):
        composed([f"{group}={option}"])


def test_typos_are_errors() -> None:
    with pytest.raises(Exception, match="colaborative"):
        composed(["scheme=[colaborative]"])
    with pytest.raises(Exception, match="lambda_3"):
        composed(["scheme.collaborative.lambda_3=1"])
