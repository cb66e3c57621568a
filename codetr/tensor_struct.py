"""Base class of dataclasses of tensors that can be moved to a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound="TensorStruct")


def _map_tensors(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``fn`` to every tensor inside dataclasses, tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, TensorStruct):
        return value.map(fn)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_map_tensors(item, fn) for item in value)
    if isinstance(value, list):
        return [_map_tensors(item, fn) for item in value]
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, fn) for key, item in value.items()}
    return value


class TensorStruct:
    """Base of frozen dataclasses, with operations on all tensors inside."""

    def map(self: T, fn: Callable[[Tensor], Tensor]) -> T:
        """A copy with ``fn`` applied to every tensor, also nested ones."""
        changed = {
            f.name: _map_tensors(getattr(self, f.name), fn)
            for f in fields(self)  # type: ignore[arg-type]
        }
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self: T, *args: Any, **kwargs: Any) -> T:
        """Like ``Tensor.to``; a dtype is applied to floating-point tensors only."""

        def move(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point():
                return tensor.to(*args, **kwargs)
            kept = [a for a in args if not isinstance(a, torch.dtype)]
            options = {k: v for k, v in kwargs.items() if k != "dtype"}
            return tensor.to(*kept, **options) if kept or options else tensor

        return self.map(move)

    def pin_memory(self: T) -> T:
        """A copy in page-locked memory."""
        return self.map(lambda tensor: tensor.pin_memory())
