"""cuDNN computes no attention in a process that has been prepared."""

from collections.abc import Callable, Iterator

import pytest
import torch

from codetr.training.train import prepare_process
from tools.bench.workload import ModelOptions, configure_process


@pytest.fixture(autouse=True)
def _allowed() -> Iterator[None]:
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize(
    "prepare",
    [lambda: prepare_process(0), lambda: configure_process(ModelOptions())],
    ids=["train and eval", "bench"],
)
def test_is_off_where_processes_are_prepared(
    prepare: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.bench.workload.keep_freed_memory", lambda: True)
    monkeypatch.setattr("codetr.training.train.configure_logging", lambda: None)
    monkeypatch.setattr("codetr.training.train.seed_everything", lambda *_, **__: 0)
    precision = torch.get_float32_matmul_precision()
    prepare()
    torch.set_float32_matmul_precision(precision)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()
