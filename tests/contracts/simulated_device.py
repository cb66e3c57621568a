"""A device that only pretends to be one: it counts what a real one would be waited for.

Tensors on it report the device ``lazy`` and hold their numbers on the CPU, so that every operation
is carried out and every step across the border to the host is seen. What runs on GPUs alone does
not run on it: Triton kernels and what surrounds them are not watched.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map

import codetr

PACKAGE = os.path.join(os.path.dirname(codetr.__file__), "")
DEVICE = torch.device("lazy", 0)
HOST = torch.device("cpu")
# What needs its result, or the size of it, on the host: operation, and why.
DYNAMIC = {
    "aten.nonzero.default": "nonzero",
    "aten.masked_select.default": "nonzero",
    "aten._unique2.default": "unique",
    "aten.unique_dim.default": "unique",
    "aten.bincount.default": "bincount",
    "aten.repeat_interleave.Tensor": "repeat_interleave",
    "torchvision.nms.default": "nms",
    "aten.equal.default": "equal",
}
INDEXING = {"aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default"}


class DeviceTensor(Tensor):
    """A tensor ``held`` on the CPU that says it is on the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=held.requires_grad,
        )
        made.held = held.detach()
        return made

    def tolist(self) -> Any:
        """Subclasses have none of their own."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise AssertionError(f"{function} outside of a Watch")


class Watch(TorchDispatchMode):
    """Runs operations on the pretended device, and counts ``waits`` by cause and file."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Unwrap, run on the CPU, wrap."""
        options = dict(kwargs or {})
        inside = tree_any(_on_device, (args, options))
        wanted = options.get("device")
        target = None if wanted is None else _indexed(torch.device(wanted))
        name = str(function)
        self._count(name, inside, target, args, options)
        if target is not None:
            options["device"] = HOST
        result = function(*tree_map(_held, args), **tree_map(_held, options))
        stays = inside if target is None else target == DEVICE
        if not stays or name == "aten._local_scalar_dense.default":
            return result
        return _rewrapped(args, result)

    def _count(
        self, name: str, inside: bool, target: torch.device | None, args: Any, options: Any
    ) -> None:
        cause, number = _wait(name, inside, target, args, options)
        if number:
            self.waits[cause, _place()] += number


def _wait(
    name: str, inside: bool, target: torch.device | None, args: Any, options: Any
) -> tuple[str, int]:
    """Why a real device would be waited for, and how often."""
    if name == "aten._to_copy.default" and target is not None:
        if inside and target != DEVICE:
            return "device to host", 1
        # Not counted where a copy need not be waited for. CUDA may wait all the same: from memory
        # that is not pinned only small copies are sure to join the queue of work.
        arriving = target == DEVICE and not inside
        return "blocking host to device", int(arriving and not options.get("non_blocking"))
    if name == "aten.copy_.default":
        crossing = _on_device(args[0]) != _on_device(args[1])
        waited = not (options.get("non_blocking") or any(args[2:]))
        return "copy between host and device", int(crossing and args[1].ndim > 0 and waited)
    if not inside:
        return "", 0
    if name == "aten._local_scalar_dense.default":
        return "item", 1
    if name in INDEXING:
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
        return "boolean index", len(masks)
    return DYNAMIC.get(name, ""), int(name in DYNAMIC)


def _place() -> str:
    """The file of the package that the innermost frame is in; empty in a backward pass."""
    files = [frame.filename for frame in traceback.extract_stack()]
    own = [name.removeprefix(PACKAGE) for name in files if name.startswith(PACKAGE)]
    return own[-1] if own else ""


def _indexed(device: torch.device) -> torch.device:
    return DEVICE if device.type == DEVICE.type else device


def _on_device(value: Any) -> bool:
    return isinstance(value, DeviceTensor)


def _held(value: Any) -> Any:
    if isinstance(value, torch.device):
        return HOST
    return value.held if isinstance(value, DeviceTensor) else value


def _rewrapped(args: Any, result: Any) -> Any:
    """Results on the device; in-place operations return the very tensor that they changed."""
    known = {id(a.held): a for a in args if isinstance(a, DeviceTensor)}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else DeviceTensor(value)

    return tree_map(wrap, result)


def to_device(module: nn.Module) -> nn.Module:
    """The module with its parameters and buffers on the device, in place."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                moved = nn.Parameter(DeviceTensor(parameter.detach()), parameter.requires_grad)
                part._parameters[name] = moved
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = DeviceTensor(buffer)
    return module


@contextmanager
def watched() -> Iterator[Watch]:
    """Inside, the device can be used; numbers of ``torch.tensor`` cross the border visibly."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    # This kind of device knows no autocast.
    plain = mock.patch.object(torch, "autocast", return_value=nullcontext())
    try:
        with plain, Watch() as watch:
            yield watch
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
