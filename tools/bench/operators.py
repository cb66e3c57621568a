"""Where the time of a step goes by kind of operator, from PyTorch's profiler."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from tools.bench.contestant import ASSIGNMENT, OPTIMIZER
from tools.bench.report import Cell, Table

ATTENTION = "deformable attention"
OTHER = "views and other operators"
OUTSIDE = "outside of operators (Python, SciPy)"

ENCLOSING = {
    ASSIGNMENT: ASSIGNMENT,
    OPTIMIZER: OPTIMIZER,
    "codetr::msda": ATTENTION,
    "codetr::msda_backward": ATTENTION,
}
"""Events that give their kind to all that runs inside."""

KINDS = (
    (ATTENTION, ("grid_sampler",)),
    (
        "matrix products and convolutions",
        ("convolution", "addmm", "bmm", "::mm", "::linear", "::matmul", "_attention"),
    ),
    ("normalisation", ("_norm", "var_mean")),
    (
        "selection and indexing",
        ("nms", "roi_align", "topk", "sort", "index", "gather", "scatter", "nonzero"),
    ),
    (
        "copies",
        ("copy", "::cat", "clone", "fill", "zero", "::ones", "::empty", "::arange", "resize"),
    ),
    (
        "elementwise and sums",
        (
            *("add", "mul", "sub", "div", "neg", "::exp", "log", "pow", "sqrt", "sin", "::cos"),
            *("relu", "threshold", "sigmoid", "softmax", "dropout", "clamp", "abs", "where"),
            *("sum", "mean", "::max", "::min", "amax", "::eq", "::ne", "::lt", "::gt", "::le"),
            *("::ge", "bitwise", "logical", "minimum", "maximum", "masked", "flip", "binary_cross"),
        ),
    ),
)
"""Kinds by parts of an operator's name; the first that fits counts."""


class Marks:
    """A ``Recorder`` that marks the parts of ``ENCLOSING`` in the profiler's record."""

    def __init__(self) -> None:
        self._open: list[record_function | None] = []

    def start(self, name: str) -> None:
        """See ``Recorder``."""
        mark = record_function(name) if name in ENCLOSING else None
        if mark is not None:
            mark.__enter__()
        self._open.append(mark)

    def stop(self) -> None:
        """See ``Recorder``."""
        mark = self._open.pop()
        if mark is not None:
            mark.__exit__(None, None, None)


def operator_tables(
    title: str, run: Callable[[], object], device: torch.device, largest: int = 15
) -> tuple[Table, Table]:
    """Profile one ``run``: seconds by kind of operator, and of the ``largest`` operators.

    Time is an operator's own, without what it calls: kernels on CUDA, the CPU's elsewhere, where
    what is left of the run (Python, SciPy's assignment, dispatch) is a row of its own.
    """
    run()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    with profile(activities=activities, acc_events=True) as record:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        wall = time.perf_counter() - start
    kinds: dict[str, list[float]] = defaultdict(list)
    operators: dict[str, list[float]] = defaultdict(list)
    for event in record.events():
        if not _counts(event):
            continue
        seconds = _own_seconds(event, device)
        kinds[kind(event)].append(seconds)
        if event.name not in ENCLOSING or "::" in event.name:
            operators[event.name].append(seconds)
    if device.type == "cpu":
        known = sum(map(sum, kinds.values()))
        kinds[OUTSIDE].append(wall - known)
    total = sum(map(sum, kinds.values()))
    notes = ("Profiling takes time itself: shares say more than seconds.",)
    return (
        _table(f"{title}: by kind of operator", kinds, total, len(kinds), notes),
        _table(f"{title}: the largest operators", operators, total, largest, ()),
    )


def kind(event: Any) -> str:
    """The kind of a profiler event, by what it runs inside, else by its name."""
    outer = event
    while outer is not None:
        if outer.name in ENCLOSING:
            return ENCLOSING[outer.name]
        outer = outer.cpu_parent
    return next((kind for kind, parts in KINDS if any(p in event.name for p in parts)), OTHER)


def _counts(event: Any) -> bool:
    """Operators and the marks that give a kind; neither kernels nor autograd's own entries."""
    if event.device_type != DeviceType.CPU or event.name.startswith("autograd::"):
        return False
    return "::" in event.name or event.name in ENCLOSING


def _own_seconds(event: Any, device: torch.device) -> float:
    own = event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total
    return own / 1e6


def _table(
    title: str, times: dict[str, list[float]], total: float, rows: int, notes: tuple[str, ...]
) -> Table:
    ranked = sorted(times.items(), key=lambda item: -sum(item[1]))[:rows]
    cells: dict[str, tuple[Cell, ...]] = {
        name: (sum(t), f"{sum(t) / total:.1%}", len(t)) for name, t in ranked
    }
    return Table(title, ("seconds", "share", "calls"), cells, notes)
