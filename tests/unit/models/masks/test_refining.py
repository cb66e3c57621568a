"""The boundary of masks, and refinement there, against loops."""

import pytest
import torch
from torch import Tensor

from codetr.models.masks.boundary import boundary, enlarged, enlarged_region
from codetr.models.masks.refine import RefineMaskHead, refined


def _at_boundary(mask: Tensor, row: int, column: int, width: int) -> bool:
    size, others = len(mask), 0
    for i in range(row - width, row + width + 1):
        for j in range(column - width, column + width + 1):
            inside = 0 <= i < size and 0 <= j < size and bool(mask[i, j])
            others += inside != bool(mask[row, column])
    return others > 0.1 * (2 * width + 1) ** 2


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64])
def test_boundary_counts_the_other_side(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    smooth = torch.nn.functional.avg_pool2d(torch.rand(6, 1, 17, 17), 4, 1)[:, 0]
    masks = torch.cat([smooth > 0.5, torch.ones(1, 14, 14).bool(), torch.zeros(1, 14, 14).bool()])
    found = boundary(masks.to(dtype), width)
    for mask, edge in zip(masks, found, strict=True):
        for row in range(14):
            for column in range(14):
                assert bool(edge[row, column]) == _at_boundary(mask, row, column, width)
    assert found[-2].any()  # a mask that fills its region ends at its border
    assert not found[-1].any()


def test_fine_stages_count_at_the_boundary_alone() -> None:
    torch.manual_seed(0)
    stages = tuple(torch.randn(3, size, size, dtype=torch.float64) for size in (7, 14, 28, 56))
    edge = enlarged_region(boundary(stages[1] >= 0, 1), 28)
    middle = torch.where(edge, stages[2], enlarged(stages[1], 28))
    last_edge = enlarged_region(boundary(middle >= 0, 1), 56)
    found = refined(stages)
    assert torch.equal(found[last_edge], stages[3][last_edge])
    assert torch.equal(found[~last_edge], enlarged(middle, 56)[~last_edge])
    assert 0 < last_edge.sum() < last_edge.numel()


def test_sizes_and_classes_of_the_stages() -> None:
    """The coarse stages have a map per class, the last one for all: only they tell classes apart
    directly.
    """
    torch.manual_seed(0)
    head = RefineMaskHead(num_classes=5, channels=16, roi_size=7)
    features, detail = torch.randn(4, 16, 7, 7), torch.randn(2, 16, 20, 24)
    rois = torch.tensor([[0.0, 3, 3, 40, 50], [1, 0, 0, 90, 70], [1, 5, 5, 9, 9], [0, 2, 2, 20, 9]])
    labels = torch.tensor([0, 4, 2, 1])
    found = head(features, labels, head.detail(detail), rois, 0.25)
    assert [logits.shape for logits in found] == [(4, size, size) for size in (7, 14, 28, 56)]
    assert head.sizes == (7, 14, 28, 56)
    with torch.no_grad():
        head.classify[0].bias[4] += 1.0
    again = head(features, labels, head.detail(detail), rois, 0.25)
    torch.testing.assert_close(again[0][1], found[0][1] + 1)
    torch.testing.assert_close(again[0][[0, 2, 3]], found[0][[0, 2, 3]])
