import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from codetr.models.necks import ChannelMapper
from codetr.structures import Pyramid


def backbone_maps() -> Pyramid:
    return Pyramid(maps=(torch.randn(2, 8, 9, 12), torch.randn(2, 16, 5, 6)), strides=(8, 16))


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_one_width_and_extra_levels_of_half_the_size(extra: int) -> None:
    neck = ChannelMapper((8, 16), (8, 16), dim=32, extra=extra)
    pyramid = neck(backbone_maps())
    assert pyramid.shapes == ((9, 12), (5, 6), (3, 3), (2, 2))[: 2 + extra]
    assert pyramid.strides == (8, 16, 32, 64)[: 2 + extra]
    assert {m.shape[1] for m in pyramid.maps} == {32}


def test_maps_are_normalised_projections_and_the_first_extra_one_sees_the_raw_map() -> None:
    neck = ChannelMapper((8, 16), (8, 16), dim=64, extra=2)
    inputs = backbone_maps()
    found = neck(inputs).maps
    for level in (0, 1):
        conv = F.conv2d(inputs.maps[level], neck.maps[level][0].weight)
        assert_close(found[level], F.group_norm(conv, 32))
    coarse = F.conv2d(inputs.maps[1], neck.extra[0][0].weight, stride=2, padding=1)
    assert_close(found[2], F.group_norm(coarse, 32))
    coarser = F.conv2d(found[2], neck.extra[1][0].weight, stride=2, padding=1)
    assert_close(found[3], F.group_norm(coarser, 32))


def test_widths_and_numbers_of_maps_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ValueError, match=r"model.dim=40 must be a multiple of 32"):
        ChannelMapper((8,), (8,), dim=40)
    with pytest.raises(ValueError, match="zip"):
        ChannelMapper((8, 16, 32), (8, 16, 32), dim=32)(backbone_maps())


def test_convolutions_have_a_bias_on_request_alone() -> None:
    plain = ChannelMapper((8, 16), (8, 16), dim=32)
    biased = ChannelMapper((8, 16), (8, 16), dim=32, bias=True)
    extra = {name for name, _ in biased.named_parameters()} - dict(plain.named_parameters()).keys()
    assert extra == {"maps.0.0.bias", "maps.1.0.bias", "extra.0.0.bias"}
    assert all(not biased.get_parameter(name).any() for name in extra)
