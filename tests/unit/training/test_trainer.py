import pytest
import torch

from codetr.errors import UserError
from codetr.training.trainer import accumulation, pick_precision


def test_accumulates_up_to_the_effective_batch() -> None:
    assert accumulation(None, 2, 8) == 1
    assert accumulation(16, 2, 8) == 1
    assert accumulation(16, 2, 2) == 4


@pytest.mark.parametrize("effective", [15, 8, 0, -16])
def test_effective_batch_has_to_be_a_multiple(effective: int) -> None:
    with pytest.raises(UserError, match=rf"effective_batch={effective} .* = 16"):
        accumulation(effective, 2, 8)


def test_precision_is_automatic_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_precision("16-mixed", "gpu") == "16-mixed"
    assert pick_precision("auto", "cpu") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert pick_precision("auto", "auto") == "bf16-mixed"
    assert pick_precision("auto", "cpu") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert pick_precision("auto", "gpu") == "32-true"
