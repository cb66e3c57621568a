"""Evaluation: forward pass and postprocessing, from normalised images to boxes in pixels.

Our experiment, and our two-stage Deformable DETR beside that of Hugging Face's transformers
(pip install 'codetr[bench]') with the same settings and images, in turns.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.bench.compared_models import PairOptions, choose_models, comparison, peaks, ready
from tools.bench.contestant import detection_memory
from tools.bench.measure import in_turns
from tools.bench.report import Table
from tools.bench.workload import configure_process


@dataclass(frozen=True, kw_only=True)
class Options(PairOptions):
    """See ``PairOptions``."""


def run(options: Options) -> tuple[Table, ...]:
    """Seconds per batch, images per second and peak memory."""
    notes: tuple[str, ...] = (configure_process(options),)
    contestants, models = ready(choose_models(options), lambda made: made.detect())
    device = options.torch_device
    times = in_turns({c.name: c.detect for c in contestants}, options.repeats, device)
    del contestants  # memory for what follows
    memory: dict[str, int] = {}
    if options.memory:
        memory, failed = peaks(models, lambda build: detection_memory(build, device))
        notes += failed
    title = f"Evaluation: {options.words}"
    return (comparison(title, "batch", times, memory, models, options.batch, notes),)
