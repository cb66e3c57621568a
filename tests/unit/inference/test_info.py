"""What a model costs, where it can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from codetr.commands.info import build, landscape, parse_size
from codetr.errors import UserError
from codetr.inference.info import measure
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


def test_size_is_the_one_of_the_recipe() -> None:
    _, resize = build(["model=co_dino_tiny", "augmentation=detr"])
    assert landscape(resize) == (800, 1333)
    assert landscape({"canvas": 1024}) == (1024, 1024)
    assert landscape({}) == (800, 1333)
    assert parse_size("480x640") == (480, 640)
    for wrong in ("480", "0x3", "ax3"):
        with pytest.raises(UserError, match=f"--size {wrong}: give"):
            parse_size(wrong)


def test_checkpoint_brings_its_model() -> None:
    with pytest.raises(UserError, match=r"checkpoint=a\.ckpt: brings its own model"):
        build(["checkpoint=a.ckpt", "model=co_dino"])
