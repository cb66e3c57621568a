"""torch.export of a Swin Transformer whose batch, height and width stay free."""

import pytest
import torch
from torch.fx.experimental import _config as symbolic_config
from torch.testing import assert_close

from codetr.models.backbones import SwinBackbone
from codetr.models.backbones.window_attention import round_up

FREE = torch.export.Dim.DYNAMIC


@pytest.fixture(scope="module")
def backbone() -> SwinBackbone:
    torch.manual_seed(0)
    small = {"embed_dim": 8, "depths": (1, 2), "heads": (1, 2), "window": 3}
    return SwinBackbone("small", **small, out_indices=(0, 1)).eval()


@pytest.fixture(scope="module")
def program(backbone: SwinBackbone) -> torch.nn.Module:
    """Recorded once, with options as in ``codetr.inference.export``; the height fills whole
    windows, the width does not.
    """
    with symbolic_config.patch(backed_size_oblivious=True):
        exported = torch.export.export(
            backbone.body,
            (torch.randn(2, 3, 45, 67),),
            dynamic_shapes=({0: FREE, 2: FREE, 3: FREE},),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    return exported.module()


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 45, 67), (1, 48, 96), (3, 101, 34), (1, 64, 50)])
def test_it_answers_alike_at_any_size(
    backbone: SwinBackbone, program: torch.nn.Module, shape: tuple[int, int, int]
) -> None:
    batch, height, width = shape
    pixels = torch.randn(batch, 3, height, width)
    for found, expected in zip(program(pixels), backbone.body(pixels), strict=True):
        assert_close(found, expected)


def test_rounding_up() -> None:
    assert [round_up(n, 4) for n in (0, 1, 4, 5, 8)] == [0, 4, 4, 8, 8]
