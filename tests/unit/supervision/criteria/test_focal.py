"""Focal losses against their formulas in float64, and at extreme logits."""

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss as reference

from codetr.supervision.criteria.focal import (
    distribution_focal_loss,
    one_hot_labels,
    quality_focal_loss,
    sigmoid_focal_loss,
)

DOUBLE = torch.float64


def test_background_is_a_row_of_zeros() -> None:
    rows = one_hot_labels(torch.tensor([[2, 0], [3, 1]]), num_classes=3)
    assert rows.tolist() == [[[0, 0, 1], [1, 0, 0]], [[0, 0, 0], [0, 1, 0]]]


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5)])
def test_focal_equals_torchvision(alpha, gamma) -> None:
    logits = torch.randn(50, 4, dtype=DOUBLE, requires_grad=True)
    targets = one_hot_labels(torch.randint(5, (50,)), 4, DOUBLE)
    ours = sigmoid_focal_loss(logits, targets, alpha, gamma)
    theirs = reference(logits, targets, alpha, gamma)
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads)


def test_quality_focal_follows_its_formula() -> None:
    logits = torch.randn(50, dtype=DOUBLE)
    quality = torch.rand(50, dtype=DOUBLE)
    p = logits.sigmoid()
    entropy = -(quality * p.log() + (1 - quality) * (1 - p).log())
    expected = (quality - p).abs() ** 2 * entropy
    torch.testing.assert_close(quality_focal_loss(logits, quality), expected)


@pytest.mark.parametrize("loss", [sigmoid_focal_loss, quality_focal_loss])
def test_extreme_logits_stay_finite(loss) -> None:
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0], requires_grad=True)
    targets = torch.tensor([1.0, 0.0, 0.0, 1.0])
    value = loss(logits, targets)
    value.sum().backward()
    assert logits.grad.isfinite().all()
    assert (value[:2] >= 50).all()
    assert not value[2:].any()


def test_distribution_focal_follows_its_formula() -> None:
    logits = torch.randn(40, 4, 17, dtype=DOUBLE, requires_grad=True)
    targets = torch.rand(40, 4, dtype=DOUBLE) * 15.9
    targets[0] = torch.tensor([0.0, 3.0, 15.0, 15.9])
    found = distribution_focal_loss(logits, targets)
    assert found.shape == targets.shape
    chances = logits.softmax(-1)
    for place in ((0, 0), (0, 1), (0, 2), (0, 3), (7, 2), (31, 1)):
        below = int(targets[place])
        share = targets[place] - below
        expected = -(1 - share) * chances[place][below].log() - share * (
            chances[place][below + 1].log()
        )
        torch.testing.assert_close(found[place], expected)
    # Its minimum lies at the two neighbours' shares: there the gradient vanishes.
    best = torch.full((17,), -60.0, dtype=DOUBLE)
    best[3], best[4] = torch.tensor([0.3, 0.7], dtype=DOUBLE).log()
    best.requires_grad_()
    distribution_focal_loss(best, torch.tensor(3.7, dtype=DOUBLE)).backward()
    torch.testing.assert_close(best.grad, torch.zeros(17, dtype=DOUBLE), atol=1e-9, rtol=0)
