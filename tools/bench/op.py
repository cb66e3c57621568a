"""Multi-scale deformable attention: ours, as ops.msda chooses it, against one grid_sample per level
and, on CUDA where it is built, the compiled op of the Deformable-DETR repository.

Forward and backward in turns, and the peak of memory beyond the inputs. CPU: the 4 levels of an
800 x 1333 image at half scale, float32. CUDA: 5 levels at full scale, values in bfloat16,
locations in float32.

On a machine with other work set OMP_WAIT_POLICY=passive: else every operation of 2 threads may
wait a time slice of the scheduler for one that is not running, which says nothing about any.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from codetr.models.ops import multi_scale_deformable_attention, use_msda
from codetr.models.ops.msda_reference import Shapes, sample_levels
from tools.bench.baselines import find_compiled
from tools.bench.compiled_op import compiled_op
from tools.bench.measure import attempt, in_turns, medians, peak_memory, ratio
from tools.bench.options import OnDevice, option
from tools.bench.report import Cell, Table

HEADS, DIM, POINTS = 8, 32, 4
HALF: Shapes = ((50, 67), (25, 34), (13, 17), (7, 9))
FULL: Shapes = ((200, 334), (100, 167), (50, 84), (25, 42), (13, 21))
SMALL: Shapes = ((16, 20), (8, 10), (4, 5))
MIB = 2**20
OURS, BASELINE, COMPILED = "ours", "grid_sample", "compiled op"
COLUMNS = ("forward ms", "backward ms", "total ms", "peak MiB")

Path = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]
Inputs = tuple[Tensor, Tensor, Tensor]
Where = Literal["encoder", "decoder", "small"]


@dataclass(frozen=True, kw_only=True)
class Options(OnDevice):
    """``where``: ``encoder`` every token asks, ``decoder`` 900 queries do, ``small`` every token of
    3 small levels does.
    """

    where: tuple[Where, ...] = option(("encoder", "decoder", "small"), "encoder, decoder, small")
    msda: str = option("auto", "who computes deformable attention, as train.py's ops.msda")
    memory: bool = option(True, "measure peak memory too, on the CPU in a fresh process each")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Levels, and how many queries look at them (None: one per token)."""

    shapes: Shapes
    queries: int | None
    dtype: torch.dtype
    device: str
    msda: str

    @property
    def words(self) -> str:
        """For a title."""
        tokens = sum(h * w for h, w in self.shapes)
        kind = str(self.dtype).removeprefix("torch.")
        count = self.queries or tokens
        return (
            f"{count} queries, {tokens} tokens of {len(self.shapes)} levels, values in {kind}, "
            "locations, weights and sums in float32"
        )


def run(options: Options) -> tuple[Table, ...]:
    """One table for each of ``options.where``."""
    runs = use_msda(options.msda, options.torch_device)
    module, found = find_compiled(options.device)
    paths: dict[str, Path] = {OURS: multi_scale_deformable_attention, BASELINE: sample_levels}
    if module is not None:
        paths[COMPILED] = compiled_op(module)
    policy = os.environ.get("OMP_WAIT_POLICY", "default")
    notes = (f"Ours: {runs}.", found, f"OMP_WAIT_POLICY: {policy}.")
    return tuple(
        measure(where, case(where, options), paths, options, notes) for where in options.where
    )


def case(where: Where, options: Options) -> Case:
    """The shapes of ``where`` on the device."""
    cuda = options.device == "cuda"
    return Case(
        shapes=SMALL if where == "small" else FULL if cuda else HALF,
        queries=900 if where == "decoder" else None,
        dtype=torch.bfloat16 if cuda else torch.float32,
        device=options.device,
        msda=options.msda,
    )


def make_inputs(case: Case) -> Inputs:
    """Value, locations and weights: every query samples some cells around its own centre."""
    torch.manual_seed(0)
    rows = [
        torch.cartesian_prod(torch.arange(h) + 0.5, torch.arange(w) + 0.5) for h, w in case.shapes
    ]
    cells = [torch.tensor([w, h]) for h, w in case.shapes]
    centres = torch.cat([yx.flip(1) / cell for yx, cell in zip(rows, cells, strict=True)])
    tokens = len(centres)
    if case.queries is not None:
        centres = torch.rand(case.queries, 2)
    grid = (1, len(centres), HEADS, len(case.shapes), POINTS)
    offsets = torch.randn(*grid, 2) * 2 / torch.stack(cells)[:, None]
    locations = centres[:, None, None, None] + offsets
    weights = torch.rand(*grid).flatten(3).softmax(-1).view(grid)
    value = torch.randn(1, tokens, HEADS, DIM, dtype=case.dtype)
    made = [x.to(case.device).requires_grad_() for x in (value, locations, weights)]
    return made[0], made[1], made[2]


def measure(
    title: str, case: Case, paths: dict[str, Path], options: Options, notes: tuple[str, ...]
) -> Table:
    """A row per path, and ours / path for each of the others; a baseline that fails is a note."""
    failures: list[str] = []
    paths = {
        name: path
        for name, path in paths.items()
        if name == OURS or attempt(name, partial(_works, case, path), failures)
    }
    forward, backward = time_in_turns(case, paths, options.repeats)
    total = {
        name: [f + b for f, b in zip(forward[name], backward[name], strict=True)] for name in paths
    }
    peaks: dict[str, int] = {}
    for name, path in paths.items():
        measured = partial(peak, case, path)
        found = None
        if options.memory:
            found = measured() if name == OURS else attempt(f"memory of {name}", measured, failures)
        if found is not None:
            peaks[name] = found
    columns = (forward, backward, total)
    rows: dict[str, tuple[Cell, ...]] = {}
    for name in paths:
        memory: Cell = peaks[name] / MIB if name in peaks else ""
        rows[name] = (*(medians(times)[name] * 1e3 for times in columns), memory)
    for name in [name for name in paths if name != OURS]:
        share: Cell = peaks[OURS] / peaks[name] if name in peaks else ""
        rows[f"{OURS} / {name}"] = (*(ratio(times, OURS, name) for times in columns), share)
    notes = (*notes, *failures)
    return Table(f"Deformable attention, {title}: {case.words}", COLUMNS, rows, notes)


def _works(case: Case, path: Path) -> bool:
    """Runs it once."""
    _pass(case, path, make_inputs(case))
    return True


def time_in_turns(
    case: Case, paths: dict[str, Path], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds forward and backward of each path in each turn. What is differentiated in all turns
    is one forward pass of each path.
    """
    inputs = make_inputs(case)
    gradient = inputs[0].detach().new_ones(1, inputs[1].shape[1], HEADS * DIM)
    calls: dict[tuple[str, bool], Callable[[], object]] = {}
    for name, path in paths.items():
        ahead = partial(path, inputs[0], case.shapes, *inputs[1:])
        calls[name, False] = ahead
        calls[name, True] = partial(
            torch.autograd.grad, ahead(), inputs, gradient, retain_graph=True
        )
    keys = {f"{name} {back}": (name, back) for name, back in calls}
    times = in_turns({key: calls[call] for key, call in keys.items()}, repeats, inputs[0].device)
    found: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
    for key, (name, back) in keys.items():
        found[back][name] = times[key]
    return found


def peak(case: Case, path: Path) -> int:
    """Bytes beyond the inputs at the peak of a forward and a backward pass."""
    return peak_memory(_fresh_pass, case, path, device=torch.device(case.device))


def _fresh_pass(case: Case, path: Path) -> Callable[[], object]:
    use_msda(case.msda, torch.device(case.device))
    few = replace(case, queries=4)
    _pass(few, path, make_inputs(few))  # loads what the first call loads, 100 MiB for an operator
    return partial(_pass, case, path, make_inputs(case))


def _pass(case: Case, path: Path, inputs: Inputs) -> None:
    out = path(inputs[0], case.shapes, *inputs[1:])
    torch.autograd.grad(out, inputs, torch.ones_like(out))
