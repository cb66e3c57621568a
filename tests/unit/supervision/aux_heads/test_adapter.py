"""From an encoder's maps to those of auxiliary heads."""

import torch
from torch.nn import functional as F
from torch.testing import assert_close

from codetr.structures import Pyramid
from codetr.supervision.aux_heads.layers import CoarserLevel, SingleScaleAdapter

DIM = 32


def test_several_maps_get_a_coarser_one() -> None:
    layer = CoarserLevel(DIM)
    maps = tuple(torch.randn(2, DIM, side, side) for side in (8, 4))
    found = layer(Pyramid(maps=maps, strides=(8, 16)))
    assert found.strides == (8, 16, 32)
    assert found.maps[:2] == maps
    assert_close(found.maps[2], layer[1](layer[0](maps[1])))


def test_one_map_becomes_a_pyramid_around_it() -> None:
    layer, own = SingleScaleAdapter(DIM, finer=2, coarser=2), torch.randn(2, DIM, 3, 5)
    found = layer(Pyramid(maps=(own,), strides=(32,)))
    assert found.strides == (8, 16, 32, 64, 128)
    assert found.shapes == ((12, 20), (6, 10), (3, 5), (2, 3), (1, 2))
    assert found.maps[2] is own
    doubled = F.interpolate(own, scale_factor=2, mode="bilinear")
    assert_close(found.maps[1], layer.finer[0](doubled))
    assert_close(found.maps[3], layer.coarser[0](own))
    assert_close(found.maps[4], layer.coarser[1](found.maps[3]))
