"""The neck of one map."""

import pytest
import torch

from codetr.errors import UserError
from codetr.models.necks import Projection
from codetr.structures import Pyramid


def test_one_map_gets_the_width_and_keeps_its_cells() -> None:
    neck = Projection((6,), (16,), dim=4)
    features = torch.randn(2, 6, 3, 5)
    (found,) = neck(Pyramid(maps=(features,), strides=(16,))).maps
    weight = neck.project.weight[:, :, 0, 0]
    expected = torch.einsum("oc,bchw->bohw", weight, features) + neck.project.bias[:, None, None]
    torch.testing.assert_close(found, expected)
    assert neck.strides == (16,)


def test_several_maps_are_an_error() -> None:
    with pytest.raises(UserError, match=r"model\.backbone\.out_indices"):
        Projection((6, 8), (16, 32))
