"""What the matchers of the models add to probabilities before it takes their logarithm."""

from __future__ import annotations

import pytest
from hydra.utils import instantiate
from resolved_values import composed

from codetr.conf_folder import conf_folder
from codetr.supervision.assigners.class_costs import FocalCost, ProbabilityCost

MODELS = sorted(path.stem for path in (conf_folder() / "model").glob("*.yaml"))
MMDET = ("co_", "deformable_detr", "deformable_refined")
"""Beginnings of the names of models whose official code is mmdet's."""


@pytest.mark.parametrize("model", MODELS)
def test_epsilon_is_that_of_the_official_code(model: str) -> None:
    cost = instantiate(composed(f"train model={model}").supervision.matcher).class_cost
    if model.startswith("yolos"):
        assert isinstance(cost, ProbabilityCost)
    else:
        assert cost == FocalCost(eps=1e-12 if model.startswith(MMDET) else 1e-8)
