"""What K auxiliary heads add to a training step of Co-DINO, the denoising scheme included in all.

K = 0, 1 (atss) and 2 (atss, rcnn) in turns in one run; goal: K = 2 takes at most 1.35 times the
step of K = 0. The paper: 120 against 70 GPU-hours, 1.71 times.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tools.bench import ours
from tools.bench.compare import Times, parts_table, time_steps
from tools.bench.contestant import Build, training_memory
from tools.bench.measure import medians, ratio
from tools.bench.options import option
from tools.bench.report import Cell, Table
from tools.bench.workload import GIB, ModelOptions, configure_process

GOAL, PAPER = 1.35, 1.71
HEADS = {"K = 0": "", "K = 1": "atss", "K = 2": "atss,rcnn"}
ONE_BY_ONE = "K = 2, groups one by one"
MODELS = {"cpu": "co_dino_tiny", "cuda": "co_dino"}
NOTES = (f"Goal for K = 2: {GOAL} times K = 0; the paper's GPU-hours: {PAPER} times.",)


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """See ``ModelOptions``."""

    model: str | None = option(None, "of conf/model; co_dino_tiny on the CPU, co_dino on CUDA")
    one_by_one: bool = option(False, "also decode the query groups of K = 2 one by one")


def run(options: Options) -> tuple[Table, ...]:
    """Seconds per step, as a multiple of K = 0, and peak memory; then the parts of the steps."""
    notes = (configure_process(options), *NOTES)
    builds, device = _builds(options), options.torch_device
    contestants = [build() for build in builds.values()]
    times, parts = time_steps(contestants, options.repeats, device)
    del contestants  # memory for what follows
    peaks = {
        name: training_memory(build, device) for name, build in builds.items() if options.memory
    }
    title = f"Training step of {_model(options)}: {options.words}"
    return (_table(title, times, peaks, notes), parts_table("Its parts, seconds", parts))


def _model(options: Options) -> str:
    return options.model or MODELS[options.device]


def _builds(options: Options) -> dict[str, Build]:
    model = f"model={_model(options)}"
    chosen: dict[str, tuple[str, ...]] = {
        name: (model, f"aux_heads=[{heads}]") for name, heads in HEADS.items()
    }
    if options.one_by_one:
        chosen[ONE_BY_ONE] = (*chosen["K = 2"], "model.one_pass=false")
    return {
        name: partial(ours.from_overrides, name, overrides, options)
        for name, overrides in chosen.items()
    }


def _table(title: str, times: Times, peaks: dict[str, int], notes: tuple[str, ...]) -> Table:
    rows: dict[str, tuple[Cell, ...]] = {}
    for name, seconds in medians(times).items():
        memory: Cell = peaks[name] / GIB if peaks else ""
        rows[name] = (seconds, ratio(times, name, "K = 0"), memory)
    return Table(title, ("seconds per step", "times K = 0", "peak GiB"), rows, notes)
