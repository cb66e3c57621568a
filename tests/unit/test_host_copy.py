"""A copy to the host that is waited for late, with a tensor that says it is on a GPU."""

import pytest
import torch

from codetr.host_copy import HostCopy


class OnGpu(torch.Tensor):
    """A tensor of the CPU that pretends."""

    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl


def test_on_the_cpu_there_is_nothing_to_copy() -> None:
    tensor = torch.rand(3, requires_grad=True)
    found = HostCopy(tensor).result()
    assert found.data_ptr() == tensor.data_ptr()
    assert not found.requires_grad


def test_on_cuda_it_begins_at_once_and_is_waited_for_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []

    class Event:
        def record(self) -> None:
            log.append("recorded")

        def synchronize(self) -> None:
            log.append("waited")

    empty, copy = torch.empty, torch.Tensor.copy_

    def pinned(*arguments: object, pin_memory: bool, **options: object) -> torch.Tensor:
        assert pin_memory
        return empty(*arguments, **options)

    def copied(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False):
        log.append("non-blocking copy" if non_blocking else "copy")
        return copy(self, source)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    values = torch.arange(3.0)
    travelling = HostCopy(values.as_subclass(OnGpu))
    assert log == ["non-blocking copy", "recorded"]
    assert torch.equal(travelling.result(), values)
    assert log[-1] == "waited"
