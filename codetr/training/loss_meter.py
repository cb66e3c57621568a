"""Means of the losses for the log and a check that they are finite, both without synchronising with
the device in every step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from codetr.distributed import gathered
from codetr.errors import UserError
from codetr.host_copy import HostCopy
from codetr.loss_terms import Losses

TOTAL = "loss"


class LossMeter:
    """Means over all processes of the total loss, of each scheme's part of it and of the unweighted
    loss terms between two readings; the sums stay on the device. A term counts in the steps and on
    the processes that have it.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._steps = 0
        self._terms: dict[tuple[str, ...], tuple[Tensor, int]] = {}
        self._weights: dict[str, float] = {}
        self.latest: tuple[tuple[str, ...], Tensor] = ((), torch.empty(0))

    def update(self, losses: Losses, total: Tensor) -> Tensor:
        """Add one step's losses; returns its values (1 + T,), detached, the total first."""
        names = tuple(f"{TOTAL}/{name}" for name in losses)
        terms = torch.stack([term.value.detach().float() for term in losses.values()])
        last = total.detach().float()
        before, count = self._terms.get(names, (torch.zeros_like(terms), 0))
        self._terms[names] = (before + terms, count + 1)
        self._weights |= zip(names, (term.weight for term in losses.values()), strict=True)
        self._total = last if self._total is None else self._total + last
        self._steps += 1
        self.latest = ((TOTAL, *names), torch.cat([last[None], terms]))
        return self.latest[1]

    def read(self) -> dict[str, float]:
        """Means since the last reading, empty if there was no step: ``loss``, its parts
        ``loss_SCHEME`` and the terms ``loss/SCHEME/...``. Synchronises with the device. All
        processes must call it.
        """
        if self._total is None:
            return {}
        everywhere = gathered((self._total.item(), self._steps, self._sums(), self._weights))
        steps = sum(steps for _, steps, _, _ in everywhere)
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        parts: dict[str, float] = defaultdict(float)
        for _, _, own, weights in everywhere:
            for name, (value, count) in own.items():
                sums[name] += value
                counts[name] += count
                parts[f"{TOTAL}_{name.split('/')[1]}"] += weights[name] * value / steps
        means = {TOTAL: sum(total for total, *_ in everywhere) / steps}
        means |= parts
        means |= {name: value / counts[name] for name, value in sums.items()}
        self._terms.clear()
        self._total, self._steps = None, 0
        return means

    def _sums(self) -> dict[str, tuple[float, int]]:
        """Sum and number of this process's values, by term."""
        sums: dict[str, tuple[float, int]] = {}
        for names, (values, count) in self._terms.items():
            for name, value in zip(names, values.tolist(), strict=True):
                before, steps = sums.get(name, (0.0, 0))
                sums[name] = (before + value, steps + count)
        return sums

    @property
    def pending(self) -> float | None:
        """Mean total loss of this process's steps since the last reading, if any."""
        return None if self._total is None else self._total.item() / self._steps

    def state_dict(self) -> dict[str, Any]:
        """The sums of this process since the last reading, on the CPU, in plain types."""
        return {
            "total": None if self._total is None else self._total.cpu(),
            "steps": self._steps,
            "terms": [(list(names), v.cpu(), n) for names, (v, n) in self._terms.items()],
            "weights": dict(self._weights),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """The inverse of ``state_dict``. Sums of a version that did not store the weights are left
        out, since the parts of the total could not be read from them.
        """
        if "weights" not in state:
            return
        total = state["total"]
        self._total = None if total is None else total.to(device)
        self._steps = state["steps"]
        self._terms = {tuple(names): (v.to(device), n) for names, v, n in state["terms"]}
        self._weights = dict(state["weights"])

    def not_finite(self) -> list[str]:
        """Names of the latest step's values that are NaN or infinite."""
        names, values = self.latest
        return [n for n, v in zip(names, values.tolist(), strict=True) if not math.isfinite(v)]


class FiniteGuard:
    """Detects a NaN or infinite loss one step late, on all processes at once.

    The flag is reduced over processes and copied to the host asynchronously after the step, so that
    reading it before the next step does not block.
    """

    def __init__(self) -> None:
        self._flag: HostCopy | None = None
        self._step = 0

    def watch(self, values: Tensor, step: int) -> None:
        """Record whether all ``values`` (T,) of this step are finite."""
        flag = (~values.isfinite().all()).to(torch.uint8)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        self._step = step
        self._flag = HostCopy(flag)

    @property
    def broken_step(self) -> int | None:
        """The watched step if a loss was not finite on any process, else None."""
        if self._flag is None:
            return None
        return self._step if self._flag.result().item() else None

    def check(self, meter: LossMeter) -> None:
        """Raise UserError on all processes if a loss of the watched step was not finite on any."""
        step = self.broken_step
        if step is None:
            return
        names = meter.not_finite()
        if dist.is_available() and dist.is_initialized():
            gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(gathered, names)
            names = sorted({name for part in gathered for name in part})
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        raise UserError(
            f"NaN or infinite loss at step {step}: {shown}. Lower optimizer.lr, set "
            "trainer.precision=32, or look at the boxes and images of the data; the last good "
            "weights are in the run folder's last.ckpt"
        )
