"""Run one training step of a case, and compare what all records of training have."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from torch import nn

from codetr.loss_terms import Losses, total_loss
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Decoded, Memory
from codetr.supervision.schemes import denoising, query_denoising
from codetr.training.losses import training_losses
from tools.parity.case import Case
from tools.parity.recorded import Recorded, RecordedStep
from tools.parity.table import EXACT, Row, Tolerance, Tolerances, compare
from tools.parity.values import Values

MEANS = Tolerance(relative=1e-9)
"""For fractional counts."""


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


@contextmanager
def entered(patches: Iterable[AbstractContextManager[Any]]) -> Iterator[None]:
    """Enter all ``patches``."""
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


@dataclass(frozen=True, kw_only=True)
class Step:
    """Results of one training step; ``seen`` holds inputs and outputs of the watched modules."""

    memory: Memory
    decoded: Mapping[str, Decoded]
    seen: Seen
    losses: Losses
    total: float

    @property
    def main(self) -> Decoded:
        """The decoder's answer for the main queries."""
        return self.decoded[MAIN]

    @property
    def noised(self) -> Decoded | None:
        """The answer for the denoising queries, if there are any."""
        groups = (query_denoising.GROUP, denoising.GROUP)
        return next((a for n, a in self.decoded.items() if n in groups and len(a.group)), None)


def training_step(case: Case, watched: Mapping[str, nn.Module] | None = None) -> Step:
    """One forward and backward pass of the real training code, from zero gradients."""
    root, decode = case.root, case.detector.decode
    root.train()
    root.zero_grad(set_to_none=True)
    said: dict[str, Any] = {}

    def remember(memory: Memory, groups: Any) -> Mapping[str, Decoded]:
        said.update(memory=memory, decoded=decode(memory, groups))
        found: Mapping[str, Decoded] = said["decoded"]
        return found

    with probe(watched or {}) as seen, mock.patch.object(case.detector, "decode", remember):
        losses = training_losses(case.detector, case.schemes, case.batch)
    total = total_loss(losses)
    total.backward()
    return Step(seen=seen, losses=losses, total=float(total.detach()), **said)


def loss_rows(
    official: RecordedStep,
    ours: Losses,
    total: float,
    tolerances: Tolerances,
    logged: Mapping[str, float] | None = None,
) -> Iterator[Row]:
    """All losses of ``ours``, by official name, their weights and the ``total``; and ``logged``
    metrics.
    """
    weights = official.weights
    found = {
        name: float(term.value.detach()) * (term.weight if weights is None else 1.0)
        for name, term in ours.items()
    }
    found |= logged or {}
    for name, value in official.losses.items():
        yield compare(name, found.get(name, math.nan), value, tolerances.of_loss(name))
        if weights and name in weights and name in ours:
            yield compare(f"weight of {name}", ours[name].weight, weights[name])
    known = official.losses if weights is None else weights
    extra = [name for name in ours if name not in known]
    yield compare("losses that only we have", len(extra), 0)
    yield compare("total", total, official.total, tolerances.losses)


def gradient_rows(
    official: RecordedStep,
    ours: nn.Module,
    names: Callable[[str], Sequence[str] | None],
    tolerance: Tolerance,
) -> Iterator[Row]:
    """L2 norms of gradients of the weighted total, by official parameter and of all together.
    ``names`` maps an official parameter to those of ``ours`` that hold it, None if it is unknown.
    """
    norms = {
        name: 0.0 if p.grad is None else float(p.grad.norm())
        for name, p in ours.named_parameters()
        if p.requires_grad
    }
    for name, value in official.norms.items():
        held = names(name)
        own = math.nan if held is None else math.hypot(*(norms.get(one, 0.0) for one in held))
        yield compare(f"grad {name}", own, value, tolerance)
    if official.norm is not None:
        yield compare("grad (all)", math.hypot(*norms.values()), official.norm, tolerance)


def count_rows(recorded: Recorded, values: Values) -> Iterator[Row]:
    """The recorded counts against the ``values`` called ``counts/...``."""
    for name, value in recorded.counts.items():
        ours = values.get(f"counts/{name}")
        if ours is not None:
            exact = np.asarray(value).dtype.kind in "iu"
            yield compare(f"counts/{name}", ours, value, EXACT if exact else MEANS)
