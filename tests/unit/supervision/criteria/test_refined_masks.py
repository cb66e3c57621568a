"""Losses of refined masks against loops over regions and cells."""

import math

import torch
from torch import Tensor

from codetr.models.masks.boundary import boundary, enlarged, enlarged_region
from codetr.structures import Targets
from codetr.supervision.criteria.refined_masks import (
    iou_loss,
    iou_targets,
    stage_losses,
    visible_shares,
)


def _entropy(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -math.log(p if target else 1 - p)


def _mean(logits: Tensor, target: Tensor, region: Tensor) -> float:
    values = [
        _entropy(a, b)
        for a, b in zip(logits[region].tolist(), target[region].tolist(), strict=True)
    ]
    return sum(values) / max(len(values), 1)


def test_fine_stages_learn_at_boundaries_predicted_or_true() -> None:
    torch.manual_seed(0)
    sizes = (6, 12, 24, 48)
    stages = [torch.randn(2, size, size, dtype=torch.float64) for size in sizes]
    targets = [(torch.rand(2, size, size) > 0.5).double() for size in sizes]
    for target in targets:
        target[:, : target.shape[1] // 2] = 0  # so that not all of it is boundary
    for stage in stages:
        stage[:, : stage.shape[1] // 2] = -stage[:, : stage.shape[1] // 2].abs()
    found = [float(loss) for loss in stage_losses(stages, targets)]
    everywhere = [torch.ones_like(stages[i], dtype=torch.bool) for i in (0, 1)]
    expected = [_mean(stages[i], targets[i], everywhere[i]) for i in (0, 1)]

    first = stages[1].sigmoid() >= 0.5
    region = enlarged_region(boundary(first, 2) | boundary(targets[1], 2), 24)
    assert 0 < region.sum() < region.numel()
    expected.append(_mean(stages[2], targets[2], region))

    fine = enlarged_region(boundary(first, 1), 24)
    second = torch.where(fine, stages[2], enlarged(stages[1], 24)).sigmoid() >= 0.5
    region = enlarged_region(boundary(second, 2) | boundary(targets[2], 2), 48)
    expected.append(_mean(stages[3], targets[3], region))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_no_region_has_no_loss() -> None:
    stages = [torch.zeros(0, size, size, requires_grad=True) for size in (6, 12, 24, 48)]
    losses = stage_losses(stages, [s.detach() for s in stages])
    assert [loss.item() for loss in losses] == [0, 0, 0, 0]
    torch.stack(losses).sum().backward()
    assert all(stage.grad is not None for stage in stages)
    assert iou_loss(torch.zeros(0), torch.zeros(0)) == 0
    assert iou_targets(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4), torch.zeros(0)).shape == (0,)


def test_iou_counts_what_the_region_does_not_show() -> None:
    """A mask of 6 cells and an object of 8 share 4; of the object half is seen: 16 cells in all."""
    target, logits = torch.zeros(1, 4, 4), torch.full((1, 4, 4), -1.0)
    target[0, :2] = 1
    logits[0, 1], logits[0, 2, :2] = 1.0, 0.1
    found = iou_targets(logits, target, torch.tensor([0.5]))
    torch.testing.assert_close(found, torch.tensor([4 / (6 + 16 - 4)]))


def test_visible_shares_are_counted_in_whole_pixels() -> None:
    torch.manual_seed(0)
    masks = (torch.rand(3, 20, 30) > 0.5).to(torch.uint8)
    boxes = torch.tensor(
        [[2.9, 3.2, 12.7, 9.9], [0, 0, 30, 20], [5.2, 5.2, 5.9, 5.9], [-3.0, 15.5, 90, 90]]
    )
    numbers = torch.tensor([0, 1, 2, 1])
    image = Targets(
        boxes=torch.zeros(3, 4),
        labels=torch.zeros(3, dtype=torch.int64),
        weights=torch.ones(3),
        size=torch.tensor([30.0, 20.0]),
        masks=masks,
    )
    windows = [(3, 9, 2, 12), (0, 20, 0, 30), (5, 6, 5, 6), (15, 20, 0, 30)]
    expected = [
        masks[n, top:bottom, left:right].sum() / masks[n].sum()
        for n, (top, bottom, left, right) in zip(numbers.tolist(), windows, strict=True)
    ]
    found = visible_shares([image], [boxes], [numbers])
    torch.testing.assert_close(found, torch.stack(expected))


def test_regions_without_overlap_do_not_count() -> None:
    predicted, wanted = torch.tensor([0.3, 0.9, 0.5]), torch.tensor([0.0, 0.7, 0.4])
    torch.testing.assert_close(iou_loss(predicted, wanted), torch.tensor((0.04 + 0.01) / 2))


def test_nothing_in_place_of_nothing_does_not_count() -> None:
    """An object of no cell, where none was predicted either, has neither a loss nor a gradient."""
    logits, target = torch.full((2, 4, 4), -1.0), torch.zeros(2, 4, 4)
    target[1, :2], logits[1, :2] = 1.0, 1.0
    wanted = iou_targets(logits, target, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(wanted, torch.tensor([0.0, 1.0]))
    predicted = torch.tensor([0.3, 0.8], requires_grad=True)
    loss = iou_loss(predicted, wanted)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(0.04))
    torch.testing.assert_close(predicted.grad, torch.tensor([0.0, -0.4]))


def test_what_does_not_count_does_not_reach_the_gradient() -> None:
    predicted = torch.tensor([torch.nan, 0.5], requires_grad=True)
    iou_loss(predicted, torch.tensor([0.0, 0.4])).backward()
    torch.testing.assert_close(predicted.grad, torch.tensor([0.0, 0.2]))
