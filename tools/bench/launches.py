"""How many operators a training step starts, each of which is at least one kernel on a GPU.

Counted below autograd and autocast, on any device: views and allocations, which start nothing, are
left out. An operator over a list of tensors counts once, and so does deformable attention. Image
size hardly matters; ``--height 256 --width 320`` is quick. Compare with an earlier report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from tools.bench import ours
from tools.bench.contestant import training_step
from tools.bench.options import option
from tools.bench.report import Cell, Table
from tools.bench.workload import ModelOptions

PRECISIONS = ("fp32", "bf16")
FREE = ("empty", "new_empty", "set_", "lift_fresh", "_unsafe_view", "_reshape_alias", "detach")
"""Beginnings of the names of operators that start no kernel, beside views."""


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """See ``ModelOptions``; ``precision`` and ``repeats`` are not used."""

    experiment: str = option("co_dino_5scale_r50_1x_coco", "of conf/experiment")
    largest: int = option(20, "operators that are listed")


class OperatorCount(TorchDispatchMode):
    """A ``Recorder`` that counts the operators started in every part, while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self._open: list[str] = []

    def start(self, name: str) -> None:
        """See ``Recorder``."""
        self._open.append(name)

    def stop(self) -> None:
        """See ``Recorder``."""
        self._open.pop()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count and run."""
        name = function.overloadpacket.__name__
        if not function.is_view and not name.startswith(FREE):
            self.parts[self._open[-1] if self._open else ""] += 1
            self.operators[name] += 1
        return function(*args, **(kwargs or {}))


def run(options: Options) -> tuple[Table, ...]:
    """Operators by part of the step, and the most frequent ones, in float32 and under bf16."""
    counts = [_counted(replace(options, precision=name)) for name in PRECISIONS]  # type: ignore[arg-type]
    title = f"Operators of a training step of {options.experiment}"
    return (
        _table(title, [count.parts for count in counts], None),
        _table("The most frequent ones", [count.operators for count in counts], options.largest),
    )


def _counted(options: Options) -> OperatorCount:
    """The operators of one step, after one that fills caches."""
    model, count = ours.from_experiment(options.experiment, options), OperatorCount()
    model.watch(count)
    training_step(model, count)
    with count:
        training_step(model, count)
    return count


def _table(title: str, counts: list[Counter[str]], rows: int | None) -> Table:
    total = sum(counts, Counter[str]())
    cells: dict[str, tuple[Cell, ...]] = {
        name: tuple(count[name] for count in counts) for name, _ in total.most_common(rows)
    }
    if rows is None:
        cells["all"] = tuple(count.total() for count in counts)
    return Table(title, PRECISIONS, cells, ())
