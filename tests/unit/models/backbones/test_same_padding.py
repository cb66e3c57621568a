"""Our SAME padding against timm's."""

import re
from pathlib import Path

import pytest
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torch.fx.experimental import _config as symbolic_config
from torch.testing import assert_close

from codetr.models.backbones import TimmBackbone
from codetr.models.backbones.same_padding import SameConv2d, simplify_same_padding


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), ((1, 2), 2)])
@pytest.mark.parametrize("size", [(1, 1), (7, 8), (12, 9)])
def test_equals_timm(
    kernel: int, stride: int | tuple[int, int], dilation: int, size: tuple[int, int]
) -> None:
    theirs = Conv2dSame(2, 4, kernel, stride=stride, dilation=dilation, groups=2)
    pixels = torch.randn(2, 2, *size)
    expected = theirs(pixels)
    body = nn.Sequential(theirs)
    simplify_same_padding(body)
    assert type(body[0]) is SameConv2d
    assert torch.equal(body(pixels), expected)


def test_a_whole_network_equals_timms() -> None:
    torch.manual_seed(0)
    ours = TimmBackbone("tf_efficientnet_lite0", out_indices=(2, 3, 4)).eval()
    assert not [m for m in ours.modules() if type(m) is Conv2dSame]
    assert [m for m in ours.modules() if type(m) is SameConv2d]
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4))
    theirs.load_state_dict(ours.body.state_dict(), strict=False)  # frozen norms count no batches
    pixels = torch.randn(1, 3, 75, 94)
    for found, expected in zip(ours(pixels).maps, theirs.eval()(pixels), strict=True):
        assert_close(found, expected)


def test_sizes_stay_simple_in_torch_export(tmp_path: Path) -> None:
    body = nn.Sequential(*(Conv2dSame(3, 3, 3, stride=2) for _ in range(3)))
    simplify_same_padding(body)
    free = torch.export.Dim.DYNAMIC
    with symbolic_config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            body, (torch.randn(1, 3, 37, 50),), dynamic_shapes=({0: free, 2: free, 3: free},)
        )
    (output,) = next(iter(program.graph.find_nodes(op="output"))).args[0]
    height, width = (str(side) for side in output.meta["val"].shape[2:])
    assert re.fullmatch(r"\(*\w+ - 1\)*//8\)* \+ 1", height), "one division, none nested"
    assert height.count("//") == width.count("//") == 1
    torch.export.save(program, tmp_path / "body.pt2")
    written = torch.export.load(tmp_path / "body.pt2").module()
    for size in [(64, 64), (33, 70)]:
        pixels = torch.randn(2, 3, *size)
        assert_close(written(pixels), body(pixels))
