"""Regions read from the map that fits them."""

import pytest
import torch
from torchvision.ops import roi_align

from codetr.models.ops.roi_pool import align_rois, pool_rois, roi_levels
from codetr.structures import Pyramid


def square(side: float) -> list[float]:
    return [3.0, 5.0, 3.0 + side, 5.0 + side]


def test_levels_change_at_multiples_of_the_finest_scale() -> None:
    rois = torch.tensor([square(s) for s in (0, 50, 111, 113, 223, 225, 449, 5000)])
    assert roi_levels(rois, finest_stride=4, num_levels=5).tolist() == [0, 0, 0, 1, 1, 2, 3, 4]
    assert roi_levels(rois, finest_stride=8, num_levels=4).tolist() == [0, 0, 0, 0, 0, 1, 2, 3]


def test_features_keep_the_order_of_regions() -> None:
    maps = tuple(torch.randn(2, 3, 40 // 2**level, 40 // 2**level) for level in range(3))
    pyramid = Pyramid(maps=maps, strides=(4, 8, 16))
    first = torch.tensor([square(150), square(20), square(120)])
    second = torch.tensor([square(10), square(140)])
    found = pool_rois(pyramid, [first, second], size=2)
    for index, (image, box, level) in enumerate(
        [(0, 0, 1), (0, 1, 0), (0, 2, 1), (1, 0, 0), (1, 1, 1)]
    ):
        roi = (first, second)[image][box : box + 1]
        alone = roi_align(
            maps[level][image : image + 1], [roi], 2, 1 / pyramid.strides[level], 0, aligned=True
        )
        torch.testing.assert_close(found[index : index + 1], alone)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_regions_that_are_not_finite_leave_the_others_alone(value: float) -> None:
    torch.manual_seed(0)
    pyramid = Pyramid(maps=(torch.randn(1, 2, 32, 32), torch.randn(1, 2, 16, 16)), strides=(4, 8))
    regions = torch.tensor([square(20.0), square(100.0)])
    broken = torch.cat([regions[:1], torch.full((1, 4), value), regions[1:]])
    found = pool_rois(pyramid, [broken])
    assert torch.equal(found[[0, 2]], pool_rois(pyramid, [regions]))
    assert found.isfinite().all()


@pytest.mark.parametrize("regions", [0, 7])
@pytest.mark.parametrize("threads", [1, 4])
def test_gradient_is_that_of_torchvision(threads: int, regions: int) -> None:
    """Also with more threads than the three channels can be cut into."""
    maps = torch.randn(2, 3, 20, 24, dtype=torch.float64, requires_grad=True)
    corners = torch.rand(regions, 2, dtype=torch.float64) * 60
    rois = torch.cat([corners, corners + 5 + torch.rand(regions, 2) * 50], dim=1)
    pyramid = Pyramid(maps=(maps,), strides=(4,))
    weights = torch.randn(2 * regions, 3, 7, 7, dtype=torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        (ours,) = torch.autograd.grad((pool_rois(pyramid, [rois, rois]) * weights).sum(), maps)
    finally:
        torch.set_num_threads(before)
    theirs = roi_align(maps, [rois, rois], 7, 1 / 4, 0, aligned=True)
    torch.testing.assert_close(ours, torch.autograd.grad((theirs * weights).sum(), maps)[0])


@pytest.mark.parametrize(("device", "ours"), [("cpu", True), ("meta", False)])
def test_our_gradient_is_for_the_cpu_alone(device: str, ours: bool) -> None:
    """Elsewhere torchvision's own has a deterministic form, ``meta`` standing for a GPU."""
    maps = torch.zeros(1, 3, 8, 8, device=device, requires_grad=True)
    found = align_rois(maps, torch.zeros(2, 5, device=device), size=7, scale=0.25)
    assert found.shape == (2, 3, 7, 7)
    assert ("_RoiAlign" in found.grad_fn.name()) is ours
