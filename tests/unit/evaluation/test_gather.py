import pytest
import torch
import torch.distributed as dist

from codetr.evaluation import gather


@pytest.mark.parametrize(
    ("backend", "expected"), [("nccl", torch.device("cuda", 3)), ("gloo", torch.device("cpu"))]
)
def test_nccl_takes_tensors_of_the_device_of_its_process(
    backend: str, expected: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert gather._device() == expected
