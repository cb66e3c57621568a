"""Where the time of a step goes: marks at the borders of a model's modules."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Recorder(Protocol):
    """Is told when a part starts and when the part that started last ends."""

    def start(self, name: str) -> None:
        """A part starts, inside those that have not ended."""
        ...

    def stop(self) -> None:
        """The part that started last ends."""
        ...


class PartTimer:
    """Seconds of named parts, each without the parts inside it.

    On CUDA the marks are events on the stream, so that nothing waits before ``read``.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._open: list[tuple[str, Any]] = []
        self._closed: list[tuple[str, str | None, Any, Any]] = []

    def start(self, name: str) -> None:
        """See ``Recorder``."""
        self._open.append((name, self._mark()))

    def stop(self) -> None:
        """See ``Recorder``."""
        name, begun = self._open.pop()
        outer = self._open[-1][0] if self._open else None
        self._closed.append((name, outer, begun, self._mark()))

    def read(self) -> dict[str, float]:
        """Seconds by name since the last reading."""
        assert not self._open, f"{self._open[-1][0]} has not ended"
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds: dict[str, float] = defaultdict(float)
        for name, outer, begun, ended in self._closed:
            duration = self._between(begun, ended)
            seconds[name] += duration
            if outer is not None:
                seconds[outer] -= duration
        self._closed.clear()
        return dict(seconds)

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begun: Any, ended: Any) -> float:
        if self.device.type != "cuda":
            return ended - begun
        return begun.elapsed_time(ended) / 1e3


class Border(NamedTuple):
    """A backward pass is in part ``name`` from the gradient of ``tensors(module's output)`` on."""

    name: str
    module: nn.Module
    tensors: Callable[[Any], Iterable[Tensor]]


def watch(
    recorder: Recorder, parts: Iterable[tuple[str, nn.Module]], borders: Iterable[Border] = ()
) -> None:
    """Tell ``recorder`` of every call of the modules, and of every border in a backward pass that
    runs inside a part.
    """
    for name, module in parts:
        module.register_forward_pre_hook(partial(_start, recorder, name))
        module.register_forward_hook(partial(_stop, recorder))
    for border in borders:
        border.module.register_forward_hook(partial(_watch_gradients, recorder, border))


class Watched:
    """Tells ``recorder`` of every call of ``part`` and of its methods, in its place."""

    def __init__(self, recorder: Recorder, name: str, part: Callable[..., Any]) -> None:
        self._recorder, self._name, self._part = recorder, name, part

    def __call__(self, *args: Any) -> Any:
        """What ``part`` makes of ``args``."""
        self._recorder.start(self._name)
        result = self._part(*args)
        self._recorder.stop()
        return result

    def __getattr__(self, key: str) -> Any:
        found = getattr(self._part, key)
        if isinstance(found, type) or not callable(found):  # a class is compared, not called
            return found
        return Watched(self._recorder, self._name, found)


def watch_methods(recorder: Recorder, name: str, module: nn.Module) -> None:
    """Tell ``recorder`` of every call of the public methods of the module's own class."""
    for key, method in vars(type(module)).items():
        if callable(method) and not key.startswith("_"):
            setattr(module, key, Watched(recorder, name, getattr(module, key)))


def _start(recorder: Recorder, name: str, module: nn.Module, inputs: Sequence[Any]) -> None:
    recorder.start(name)


def _stop(recorder: Recorder, module: nn.Module, inputs: Sequence[Any], output: Any) -> None:
    recorder.stop()


def _watch_gradients(
    recorder: Recorder, border: Border, module: nn.Module, inputs: Sequence[Any], output: Any
) -> None:
    for tensor in border.tensors(output):
        if tensor.requires_grad:
            tensor.register_hook(partial(_cross, recorder, border.name))


def _cross(recorder: Recorder, name: str, gradient: Tensor) -> None:
    recorder.stop()
    recorder.start(name)
