from collections.abc import Iterator

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.strategies import DDPStrategy

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.training.trainer import (
    accumulation,
    build_trainer,
    pick_accelerator,
    pick_precision,
    use_tf32,
)

CONF = conf_folder()


def test_ddp_copies_neither_buffers_nor_gradients() -> None:
    given = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "num_classes=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*given, "schedule.epochs=1"])
    strategy = build_trainer(cfg.trainer, 1, []).strategy
    assert isinstance(strategy, DDPStrategy)
    assert strategy.num_processes == 2
    assert strategy._ddp_kwargs == {"broadcast_buffers": False, "gradient_as_bucket_view": True}


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_strategies_that_copy_the_process_are_refused(strategy: str) -> None:
    given = ["trainer=cpu", "trainer.devices=2", f"trainer.strategy={strategy}", "num_classes=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*given, "schedule.epochs=1"])
    with pytest.raises(UserError, match=f"trainer.strategy={strategy}: .* give trainer=ddp"):
        build_trainer(cfg.trainer, 1, [])


def test_accumulates_up_to_the_effective_batch() -> None:
    assert accumulation(None, 2, 8) == 1
    assert [accumulation(16, 2, devices) for devices in (1, 2, 4, 8)] == [8, 4, 2, 1]
    assert [accumulation(16, 1, devices) for devices in (1, 2, 4, 8, 16)] == [16, 8, 4, 2, 1]


@pytest.mark.parametrize("devices", [3, 5, 6, 16])
def test_devices_that_do_not_divide_the_effective_batch_are_named(devices: int) -> None:
    with pytest.raises(UserError, match=rf"16 is not a multiple of .*=2 x {devices} devices"):
        accumulation(16, 2, devices)


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


def test_evaluation_is_exact_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert pick_precision("auto", "gpu", exact=True) == "32-true"
    assert pick_precision("bf16-mixed", "gpu", exact=True) == "bf16-mixed"


@pytest.fixture
def _float32() -> Iterator[None]:
    """Settings of the process, put back."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("_float32")
@pytest.mark.parametrize("choice", ["auto", True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_tf32_is_for_products_and_convolutions_alike(choice: bool | str, exact: bool) -> None:
    use_tf32(choice, exact)
    allowed = choice is True or (choice == "auto" and not exact)
    assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_other_values_of_tf32_are_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.tf32=high"):
        use_tf32("high")


def test_apples_gpu_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_accelerator("auto") == pick_accelerator("cpu") == "cpu"
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu: .*trainer\.accelerator=cpu"):
        pick_accelerator("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_accelerator("auto") == "auto"
