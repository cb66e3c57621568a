"""The simple feature pyramid against its explicit operations."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.models.necks import SimpleFeaturePyramid
from codetr.structures import Pyramid


def neck() -> SimpleFeaturePyramid:
    """With norms that count."""
    made = SimpleFeaturePyramid((16,), (16,), dim=8)
    for parameter in made.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    return made


class Explicit:
    """The steps of one branch, taking parameters by the official index of each layer."""

    def __init__(self, state: dict[str, Tensor], branch: str, features: Tensor) -> None:
        self.state, self.branch, self.features = state, branch, features

    def conv_norm(self, index: int, stride: int = 1) -> "Explicit":
        weight = self.state[f"{self.branch}.{index}.weight"]
        made = F.conv2d(self.features, weight, stride=stride, padding=weight.shape[-1] // 2)
        gain, shift = (self.state[f"{self.branch}.{index + 1}.{k}"] for k in ("weight", "bias"))
        mean = made.mean(1, keepdim=True)
        variance = (made - mean).square().mean(1, keepdim=True)
        self.features = (made - mean) / (variance + 1e-6).sqrt() * gain[:, None, None]
        self.features = self.features + shift[:, None, None]
        return self

    def gelu(self) -> "Explicit":
        normal = torch.distributions.Normal(0.0, 1.0)
        self.features = self.features * normal.cdf(self.features)
        return self

    def repeat(self) -> "Explicit":
        self.features = self.features.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return self

    def pool(self) -> "Explicit":
        padded = F.pad(self.features, (1, 1, 1, 1), value=-torch.inf)
        self.features = padded.unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))
        return self


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7)])
def test_levels_are_their_explicit_operations(height: int, width: int) -> None:
    made = neck().double()
    features = torch.randn(2, 16, height, width, dtype=torch.float64)
    state = made.levels.state_dict()
    found = made(Pyramid(maps=(features,), strides=(16,)))
    p2, p3, p4, p5, p6 = (Explicit(state, f"p{level}", features) for level in range(2, 7))
    p2.repeat().conv_norm(1).gelu().repeat().conv_norm(5).gelu().conv_norm(8).gelu().conv_norm(11)
    p3.repeat().conv_norm(1).gelu().conv_norm(4).gelu().conv_norm(7)
    p4.conv_norm(0).gelu().conv_norm(3)
    p5.pool().conv_norm(1).gelu().conv_norm(4)
    p6.pool().conv_norm(1, stride=2).gelu().conv_norm(4).gelu().conv_norm(7)
    for level, expected in zip(found.maps, (p2, p3, p4, p5, p6), strict=True):
        assert_close(level, expected.features)
    assert found.strides == made.strides == (4, 8, 16, 32, 64)


def test_maps_have_one_width_and_the_sizes_of_their_strides() -> None:
    found = neck()(Pyramid(maps=(torch.randn(1, 16, 5, 8),), strides=(16,)))
    assert found.shapes == ((20, 32), (10, 16), (5, 8), (3, 4), (2, 2))
    assert {m.shape[1] for m in found.maps} == {8}


def test_convolutions_have_no_bias_and_start_by_xavier() -> None:
    made = SimpleFeaturePyramid((64,), (16,), dim=32)
    convs = [m for m in made.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 4 + 3 + 2 + 2 + 3
    for conv in convs:
        bound = (6 / ((conv.in_channels + conv.out_channels) * conv.kernel_size[0] ** 2)) ** 0.5
        assert conv.bias is None
        assert 0.9 * bound < conv.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("channels", "strides"), [((16, 32), (8, 16)), ((18,), (16,)), ((16,), (2,))]
)
def test_backbones_that_do_not_fit_are_user_errors(
    channels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    with pytest.raises(UserError, match=r"one map.*another backbone"):
        SimpleFeaturePyramid(channels, strides)
