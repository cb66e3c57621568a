"""Counting what an experiment has, and reading what it should have."""

from pathlib import Path

import pytest
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from codetr.errors import UserError
from tools.docs.parameters import (
    OfficialCount,
    ParameterCount,
    count_experiments,
    count_parameters,
    parameter_table,
    read_official_counts,
)


def test_frozen_norms_count_for_themselves() -> None:
    detector = nn.Sequential(nn.Linear(3, 2), FrozenBatchNorm2d(5))
    schemes = nn.ModuleDict({"extra": nn.Embedding(4, 3)})
    count = count_parameters(nn.ModuleDict({"detector": detector, "schemes": schemes}))
    assert count == ParameterCount(detector=8, training=12, frozen_norm=10)
    assert count.total == 30


def test_an_experiment_without_an_official_number_is_an_error() -> None:
    official = {"one": OfficialCount(classes=80, parameters=1)}
    with pytest.raises(UserError, match="other: no official number of parameters: give one of one"):
        count_experiments(["other"], official)


def test_table_shows_the_difference() -> None:
    count = ParameterCount(detector=1000, training=200, frozen_norm=30)
    official = {"some": OfficialCount(classes=80, parameters=1231)}
    row = parameter_table({"some": count}, official).splitlines()[-1]
    assert row == "| `some` | 80 | 1,000 | 200 | 30 | 1,230 | 1,231 | -1 |"


@pytest.mark.parametrize("content", ["", "[1]", '{"a": {"classes": 1}}', '{"a": 3}'])
def test_a_broken_table_is_one_clear_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "official.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"official\.json: not a table"):
        read_official_counts(path)
