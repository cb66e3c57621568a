"""The recipe of a W&B sweep: the commands that an agent makes of it are those of train.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from codetr.checkpoints.experiment import compose_train
from codetr.settings import check_settings
from codetr.training.wandb_logger import BEST_METRICS

ROOT = Path(__file__).resolve().parents[2]
RECIPE = yaml.safe_load((ROOT / "docs/wandb_sweep.yaml").read_text("utf-8"))


def values(parameter: dict[str, Any]) -> list[Any]:
    """All that a parameter lists, or the ends of its range."""
    listed = parameter.get("values")
    if listed is None:
        return (
            [parameter["value"]] if "value" in parameter else [parameter["min"], parameter["max"]]
        )
    return list(listed)


@pytest.mark.parametrize("place", [0, -1])
def test_commands_of_an_agent_compose(place: int) -> None:
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    chosen = {key: values(given)[place] for key, given in RECIPE["parameters"].items()}
    arguments = utils.create_sweep_command_args(
        {"args": {key: {"value": value} for key, value in chosen.items()}}
    )
    line: list[str] = []
    for word in utils.create_sweep_command(list(RECIPE["command"])):
        line += arguments["args_no_hyphens"] if word == "${args_no_hyphens}" else [word]
    start, overrides = line[:3], line[3:]
    assert start == ["${env}", "${interpreter}", "${program}"]
    cfg = compose_train([*overrides, "num_classes=3"])
    check_settings(cfg, overrides)
    for key, value in chosen.items():
        if key != "aux_heads":
            assert OmegaConf.select(cfg, key) == value
    assert set(cfg.aux_heads) == set(chosen["aux_heads"].strip("[]").split(","))
    assert set(cfg.logger) == {"wandb", "csv"}


def test_the_recipe_is_about_what_is_logged_and_there() -> None:
    assert (ROOT / RECIPE["program"]).is_file()
    assert RECIPE["metric"]["name"] in BEST_METRICS
    assert RECIPE["metric"]["goal"] == "maximize"
    assert RECIPE["method"] in ("grid", "random", "bayes")
