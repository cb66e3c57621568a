"""Images per second of the training pipelines, ours against Pillow and numpy step by step.

Everything that a data worker does with an image, on one core: reading and decoding the file,
augmenting image, boxes and masks, normalising to float32. ``--images FOLDER`` is in COCO format
(with annotations/instances_train2017.json) or holds JPEG files; by default scenes are rendered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from codetr.data.dataset import AugmentedDataset
from tools.bench.measure import in_turns, medians, peak_memory, ratio
from tools.bench.options import Common, option
from tools.bench.pictures import Pictures, coco_pictures
from tools.bench.pipelines import PIPELINES, Stages, build_dataset, build_stages, run_stages
from tools.bench.report import Table

STAGES = ("decode", "augment", "convert", "total")
PATHS = ("ours", "baseline")
LARGE = 4


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """What the input pipeline is measured on."""

    threads: int | None = option(1, "of PyTorch, as in a data worker")
    images: str | None = option(None, "folder in COCO format, or of JPEG files")
    count: int = option(32, "images in a turn")
    large: int = option(8, "large images in a turn, for scaled decoding")
    memory: bool = option(True, "measure the peak of memory, in processes of their own")
    rate: float = option(20.0, "images per second that a GPU takes")
    gpus: int = option(8, "of a node")


def run(options: Options) -> tuple[Table, ...]:
    """A table for each training pipeline, and one of the workers that a node needs."""
    folder = Path(options.images).expanduser() if options.images else None
    with coco_pictures(folder, options.count) as pictures:
        overrides = {n: (*pictures.overrides, *o) for n, o in PIPELINES.items()}
        times = {name: _times(o, options) for name, o in overrides.items()}
        tables = [
            _pipeline_table(name, times[name], overrides[name], options, pictures)
            for name in PIPELINES
        ]
        return (*tables, _worker_table(times, options), _scaled_table(options))


Times = dict[str, list[float]]
"""Seconds per image of "ours/decode" and so on, in each turn."""


def _times(overrides: tuple[str, ...], options: Options) -> Times:
    sides = build_stages(overrides)
    count = min(options.count, len(sides["ours"].dataset))  # type: ignore[attr-defined]
    paths: dict[str, Callable[[], object]] = {}
    for side in PATHS:
        for name, path in _paths(sides[side], count).items():
            paths[f"{side}/{name}"] = path
    return {
        name: [seconds / count for seconds in turns]
        for name, turns in in_turns(paths, options.repeats).items()
    }


def _paths(stages: Stages, count: int) -> dict[str, Callable[[], object]]:
    """Each stage over all images, on what the stages before it gave in a turn of their own."""
    decoded = [stages.decode(i) for i in range(count)]
    augmented = [stages.augment(i, 0, decoded[i]) for i in range(count)]
    return {
        "decode": lambda: [stages.decode(i) and None for i in range(count)],
        "augment": lambda: [stages.augment(i, 0, decoded[i]) and None for i in range(count)],
        "convert": lambda: [stages.convert(augmented[i]).shape for i in range(count)],
        "total": partial(_run_all, stages, count),
    }


def _run_all(stages: Stages, count: int) -> None:
    for index in range(count):
        run_stages(stages, index, 0)


def _prepare(overrides: tuple[str, ...], side: str, count: int) -> Callable[[], object]:
    stages: Any = build_stages(overrides)[side]
    return partial(_run_all, stages, min(count, len(stages.dataset)))


def _pipeline_table(
    name: str, times: Times, overrides: tuple[str, ...], options: Options, pictures: Pictures
) -> Table:
    seconds = medians(times)
    memory = {
        side: peak_memory(_prepare, overrides, side, options.count) / 2**20
        for side in PATHS
        if options.memory
    }
    rows: dict[str, tuple[float | str, ...]] = {
        side: (
            *(1e3 * seconds[f"{side}/{stage}"] for stage in STAGES),
            1 / seconds[f"{side}/total"],
            memory.get(side, ""),
        )
        for side in PATHS
    }
    ratios = {stage: ratio(times, f"ours/{stage}", f"baseline/{stage}") for stage in STAGES}
    rows["ours / baseline"] = (
        *ratios.values(),
        1 / ratios["total"],
        memory["ours"] / memory["baseline"] if memory else "",
    )
    return Table(
        title=f"{name}: ms per image on one core",
        columns=(*STAGES, "images/s", "peak MiB"),
        rows=rows,
        notes=(f"{pictures.origin}; peak beyond what stands before the first image",),
    )


def _scaled_table(options: Options) -> Table:
    """What ``data.scaled_decoding`` gains where images are much larger than their targets."""
    rows: dict[str, tuple[float | str, ...]] = {}
    with coco_pictures(None, options.large, enlarged=LARGE) as pictures:
        for name, pipeline in PIPELINES.items():
            paths = {
                switch: partial(_read_all, build_dataset((*pictures.overrides, *pipeline, switch)))
                for switch in ("data.scaled_decoding=true", "data.scaled_decoding=false")
            }
            times = in_turns(paths, options.repeats)
            seconds = [s / options.large for s in medians(times).values()]
            rows[name] = (*(1e3 * s for s in seconds), ratio(times, *paths))
    return Table(
        title="Scaled decoding of large images: ms per image on one core",
        columns=("scaled", "whole", "scaled / whole"),
        rows=rows,
        notes=(f"rendered scenes, {LARGE} times as wide and high as COCO's images",),
    )


def _read_all(dataset: AugmentedDataset) -> None:
    for index in range(len(dataset)):
        dataset[index]


def _worker_table(times: dict[str, Times], options: Options) -> Table:
    rate = options.gpus * options.rate
    return Table(
        title=f"Workers for {options.gpus} GPUs at {options.rate:g} images/s each",
        columns=PATHS,
        rows={
            name: tuple(math.ceil(rate * medians(t)[f"{side}/total"]) for side in PATHS)
            for name, t in times.items()
        },
        notes=("each on a core of its own; what passes between processes is not counted",),
    )
