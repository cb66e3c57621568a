"""One training step and one evaluation of a case by our own code, and the rows that records of all
detectors share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from codetr.loss_terms import Losses, total_loss
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Decoded, Memory, Predictions
from codetr.training.losses import training_losses
from tools.parity.case import Case
from tools.parity.probe import Seen, probe
from tools.parity.table import Row, Tolerance, compare


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one training step made; ``seen`` holds what the watched parts took and gave."""

    memory: Memory
    decoded: Mapping[str, Decoded]
    seen: Seen
    losses: Losses
    total: float

    @property
    def main(self) -> Decoded:
        """Of the main queries."""
        return self.decoded[MAIN]


def training_step(
    case: Case,
    watched: Mapping[str, nn.Module] | None = None,
    patches: Sequence[AbstractContextManager[Any]] = (),
) -> Step:
    """One step of the real training code within ``patches``, forward and backward, from clean
    gradients.
    """
    root, decode = case.root, case.detector.decode
    root.train()
    root.zero_grad(set_to_none=True)
    said: dict[str, Any] = {}

    def remember(memory: Memory, groups: Any) -> Mapping[str, Decoded]:
        said.update(memory=memory, decoded=decode(memory, groups))
        found: Mapping[str, Decoded] = said["decoded"]
        return found

    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        with probe(watched or {}) as seen, mock.patch.object(case.detector, "decode", remember):
            losses = training_losses(case.detector, case.schemes, case.batch)
        total = total_loss(losses)
        total.backward()  # in here: checkpointed layers are run again
    return Step(seen=seen, losses=losses, total=float(total.detach()), **said)


@torch.no_grad()
def evaluated(case: Case, patches: Sequence[AbstractContextManager[Any]] = ()) -> Predictions:
    """What the detector finds within ``patches``."""
    case.root.eval()
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        last: Predictions = case.detector(case.batch.images)
    return last


def gradient_rows(
    case: Case,
    theirs: Mapping[str, float],
    everything: tuple[float, Tolerance],
    tolerance: Tolerance,
    kind: str = "",
) -> Iterator[Row]:
    """L2 norms of the gradients of the weighted total: ``theirs`` by official name, and of all."""
    norms = {name: _norm(p.grad) for name, p in _trained(case).items()}
    for official, value in theirs.items():
        names = case.own_names(official)
        known = bool(names) or case.drops(official)
        own = math.hypot(*(norms.get(name, 0.0) for name in names)) if known else -1.0
        yield compare(f"grad {official}{kind}", own, value, tolerance)
    total, wide = everything
    yield compare(f"grad (all){kind}", math.hypot(*norms.values()), total, wide)


def frozen_row(case: Case, frozen: Iterable[str]) -> Row:
    """Of official parameters that have no gradient."""
    trained = _trained(case)
    count = sum(name in trained for official in frozen for name in case.own_names(official))
    return compare("frozen parameters that we train", count, 0)


def _trained(case: Case) -> dict[str, nn.Parameter]:
    return {name: p for name, p in case.root.named_parameters() if p.requires_grad}


def _norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.norm())
