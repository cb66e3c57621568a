"""Record inputs and outputs of modules without changing them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Seen:
    """``inputs[name]`` and ``outputs[name]``: one entry per call, in the order of the calls."""

    inputs: dict[str, list[tuple[Any, ...]]] = field(default_factory=lambda: defaultdict(list))
    outputs: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))


@contextmanager
def probe(modules: Mapping[str, nn.Module]) -> Iterator[Seen]:
    """Record every call of the named ``modules`` inside the context."""
    seen = Seen()

    def hook(name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen.inputs[name].append(inputs)
            seen.outputs[name].append(output)

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
