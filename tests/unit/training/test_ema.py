"""The average of weights on a device: one operation, no wait, the model's buffers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from codetr.training.ema import Average, ExponentialMovingAverage, exponential, hyperbolic

CPU = torch.device("cpu")


class Started(TorchDispatchMode):
    """Names of the operators that are started."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm2d(4), nn.Linear(2, 2))


def test_a_step_is_one_operation_over_all_weights() -> None:
    source = model()
    average = Average(source, CPU, 0.9, None)
    average.update_parameters(source)
    with Started() as started:
        average.update_parameters(source)
    assert [n for n in started.names if n.startswith("_foreach")] == ["_foreach_lerp_"]
    on_the_counter = {"add_", "_local_scalar_dense"}
    assert set(started.names) - {"_foreach_lerp_"} <= on_the_counter


def test_is_built_on_the_device_of_training() -> None:
    """Lightning moves the model after the callbacks' setup."""
    ema = ExponentialMovingAverage()
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    ema.setup(trainer, model(), "fit")  # type: ignore[arg-type]
    assert ema._average_model is not None
    assert {p.device.type for p in ema._average_model.module.parameters()} == {"meta"}
    assert ema._average_model.n_averaged.device == CPU


def test_follows_its_equation_in_any_dtype() -> None:
    source = nn.Linear(3, 2, dtype=torch.float64)
    average = Average(source, CPU, 0.8, hyperbolic)
    average.update_parameters(source)
    expected = source.weight.detach().clone()
    for n in range(1, 20):
        with torch.no_grad():
            source.weight.add_(torch.randn(2, 3))
        average.update_parameters(source)
        keep = min(0.8, (1 + n) / (10 + n))
        expected += (1 - keep) * (source.weight.detach() - expected)
    torch.testing.assert_close(average.module.weight, expected)


@pytest.mark.parametrize("n", [0, 1, 100, 10**6])
def test_warm_ups_are_numbers_of_the_host(n: int) -> None:
    for warmup in (hyperbolic, exponential):
        assert type(warmup(0.9, n)) is float
        assert 0 < warmup(0.9, n) <= 0.9


def test_checkpoints_have_the_current_buffers() -> None:
    ema, source = ExponentialMovingAverage(), model()
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=CPU))
    ema.setup(trainer, source, "fit")  # type: ignore[arg-type]
    source.train()[1](torch.rand(2, 4, 3, 3) + 7)
    checkpoint = {"state_dict": source.state_dict()}
    ema.on_save_checkpoint(trainer, source, checkpoint)  # type: ignore[arg-type]
    for name, buffer in source.named_buffers():
        assert torch.equal(checkpoint["state_dict"][name], buffer), name
    assert checkpoint["averaging_state"].keys() == {"n_averaged"}
