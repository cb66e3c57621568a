"""What a model costs, where it can be counted by hand."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.inference.info import build, info, landscape, measure
from codetr.structures import Images


class Pointwise(nn.Module):
    """A 1x1 convolution to four channels: 3 * 4 multiply-adds per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.nothing = nn.Identity()

    def forward(self, images: Images) -> torch.Tensor:
        """(1, 4, H, W)."""
        assert not images.padding.any()
        return self.backbone(images.pixels)


def test_counts_are_those_by_hand() -> None:
    cost = measure(Pointwise().eval(), 20, 30, repeats=2)
    assert cost.multiply_adds == 20 * 30 * 3 * 4
    assert cost.parameters == {"backbone": 16}
    assert cost.seconds > 0
    first, second, third = cost.lines()
    assert first == "parameters: 16 (millions: backbone 0.00)"
    assert "20 x 30: 7.2e-06 billion multiply-adds" in second
    assert third.startswith("time on cpu")


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("info", [*overrides])


def test_large_numbers_are_whole() -> None:
    cost = measure(Pointwise().eval(), 20, 30, repeats=1)
    cost = replace(cost, multiply_adds=849 * 10**9)
    assert "849 billion multiply-adds (1,698 GFLOP)" in cost.lines()[1]
    cost = replace(cost, multiply_adds=999_700_000_000)
    assert "1,000 billion multiply-adds (1,999 GFLOP)" in cost.lines()[1]


def test_size_is_the_one_of_the_recipe() -> None:
    _, resize = build(composed("model=co_dino_tiny"))
    assert landscape(resize) == (800, 1333), "without a recipe"
    _, resize = build(composed("model=co_dino_tiny", "augmentation=detr"))
    assert landscape(resize) == (800, 1333)
    assert landscape({"canvas": 1024}) == (1024, 1024)
    assert landscape({}) == (800, 1333)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("size=[480]",), "size="),
        (("size=[0,3]",), "size="),
        (("model=co_dino", "seed=1"), "seed=1: changes nothing here: leave it out"),
        (("checkpoint=a.ckpt", "model=co_dino"), "where a.ckpt brings its own settings"),
        ((), "give experiment=NAME, model=NAME or checkpoint=FILE"),
    ],
)
def test_mistakes_are_told(given: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        info(composed(*given), given)
