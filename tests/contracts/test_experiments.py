"""What every file in conf/experiment, conf/model, conf/schedule ... owes."""

import pytest
from tiny import CONF, composed, options, published

EXPERIMENTS = published()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_opens_with_how_to_run_it_and_what_was_published(experiment: str) -> None:
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"python train.py experiment={experiment}" in lines[1]
    assert "; published with " in lines[1]
    assert "AP" in lines[1]
    assert lines[1].endswith(".")
    assert lines[2] == "defaults:"


@pytest.mark.parametrize(
    "group",
    ["model", "schedule", "optimizer", "augmentation", "callbacks", "data", "evaluation"],
)
def test_every_option_composes(group: str) -> None:
    for option in options(group):
        composed([f"{group}={option}"])


def test_typos_are_errors() -> None:
    with pytest.raises(Exception, match="colaborative"):
        composed(["scheme=[colaborative]"])
    with pytest.raises(Exception, match="lambda_3"):
        composed(["scheme.collaborative.lambda_3=1"])
