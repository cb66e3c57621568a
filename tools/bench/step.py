"""A whole training step: forward, losses, backward, clipping and the optimiser.

Our experiment, and our two-stage Deformable DETR beside that of Hugging Face's transformers
(pip install 'codetr[bench]') with the same settings, images and boxes, in turns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tools.bench.compare import parts_table, time_steps
from tools.bench.compared_models import PairOptions, choose_models, comparison, peaks, ready
from tools.bench.contestant import Build, Silent, training_memory, training_step
from tools.bench.operators import Marks, operator_tables
from tools.bench.options import option
from tools.bench.report import Table
from tools.bench.workload import configure_process


@dataclass(frozen=True, kw_only=True)
class Options(PairOptions):
    """See ``PairOptions``."""

    profile: bool = option(False, "also run the experiment once under PyTorch's profiler")


def run(options: Options) -> tuple[Table, ...]:
    """Seconds and peak memory, the parts of the step, and with ``profile`` its operators."""
    notes: tuple[str, ...] = (configure_process(options),)
    contestants, models = ready(choose_models(options), lambda made: training_step(made, Silent()))
    times, parts = time_steps(contestants, options.repeats, options.torch_device)
    del contestants  # memory for what follows
    device = options.torch_device
    memory: dict[str, int] = {}
    if options.memory:
        memory, failed = peaks(models, lambda build: training_memory(build, device))
        notes += failed
    title = f"Training step: {options.words}"
    tables = (
        comparison(title, "step", times, memory, models, options.batch, notes),
        parts_table("Its parts, seconds", parts),
    )
    if not options.profile:
        return tables
    return (*tables, *_profiled(options.experiment, models.builds[options.experiment], device))


def _profiled(name: str, build: Build, device: torch.device) -> tuple[Table, ...]:
    contestant, marks = build(), Marks()
    contestant.watch(marks)
    return operator_tables(name, lambda: training_step(contestant, marks), device)
