import pytest
import torch

from codetr.loss_terms import LossTerm, prefixed, scaled, total_loss


def test_total_is_the_weighted_sum_and_its_gradient() -> None:
    values = torch.tensor([2.0, 5.0, 7.0], requires_grad=True)
    losses = {
        name: LossTerm(value, weight)
        for name, value, weight in zip("abc", values, (1.0, 0.5, 0.0), strict=True)
    }
    total = total_loss(losses)
    assert total.item() == 4.5
    total.backward()
    assert values.grad.tolist() == [1.0, 0.5, 0.0]


def test_no_losses_is_an_error_that_names_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"scheme=\[one_to_one\]"):
        total_loss({})


def test_scaling_changes_the_weight_and_not_the_logged_value() -> None:
    losses = scaled(12.0, prefixed("atss", {"cls": LossTerm(torch.tensor(3.0), 2.0)}))
    assert losses == {"atss/cls": LossTerm(torch.tensor(3.0), 24.0)}
