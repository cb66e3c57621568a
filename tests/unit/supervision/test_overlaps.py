"""The generalised IoU in pixels and of relative boxes: the same but for the epsilons."""

import torch
from torch.testing import assert_close

from codetr.boxes import cxcywh_to_xyxy
from codetr.supervision.overlaps import PixelGiou, RelativeGiou

SIZE = torch.tensor([640.0, 480.0, 640.0, 480.0], dtype=torch.float64)


def boxes(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    drawn = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.1
    return cxcywh_to_xyxy(drawn)


def test_without_epsilon_the_unit_does_not_matter() -> None:
    found, wanted = boxes(50)[:, None], boxes(20)
    in_pixels = PixelGiou()(found, wanted, SIZE)
    assert_close(RelativeGiou(eps=0.0)(found, wanted, SIZE), in_pixels)
    assert (in_pixels < 0).any()
    assert (in_pixels > 0.3).any()


def test_epsilon_is_added_to_union_and_hull() -> None:
    found = torch.tensor([[0.0, 0.0, 0.002, 0.002]], dtype=torch.float64)
    wanted = torch.tensor([[0.001, 0.0, 0.003, 0.002]], dtype=torch.float64)
    union, hull, eps = 6e-6, 6e-6, 1e-6
    expected = 2e-6 / (union + eps) - (hull - union) / (hull + eps)
    assert_close(RelativeGiou()(found, wanted, SIZE), found.new_tensor([expected]))
    apart = torch.tensor([[0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)  # no area
    assert RelativeGiou()(apart, apart, SIZE).tolist() == [0.0]


def test_gradients_of_boxes_without_overlap_are_finite_and_pull_them_together() -> None:
    found = torch.tensor([[0.1, 0.1, 0.2, 0.2]], requires_grad=True)
    wanted = torch.tensor([[0.6, 0.1, 0.7, 0.2]])
    RelativeGiou()(found, wanted, SIZE.float()).sum().backward()
    assert found.grad is not None
    assert found.grad.isfinite().all()
    assert found.grad[0, 2] > 0
