"""Deformable attention against one grid_sample per level, at the shapes of an encoder.

``python benchmarks/msda.py [--device cuda] [--json FILE]`` measures both in turns, so that what
else the machine does hits both, and prints medians: milliseconds forward and backward, the peak
of memory beyond the inputs, and ours / baseline. On the CPU: 4 levels of an 800 x 1333 image at
half scale, float32, 1 and 2 threads; on a GPU: 5 levels at full scale, values in bfloat16.

On a machine with other work set ``OMP_WAIT_POLICY=passive``: else every operation of 2 threads may
wait a time slice of the scheduler for one that is not running, which says nothing about either.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from codetr.ops import multi_scale_deformable_attention, use_msda
from codetr.ops.msda_reference import Shapes, sample_levels

HEADS, DIM, POINTS = 8, 32, 4
SHAPES: dict[str, Shapes] = {
    "cpu": ((50, 67), (25, 34), (13, 17), (7, 9)),
    "cuda": ((200, 334), (100, 167), (50, 84), (25, 42), (13, 21)),
}
VALUES = {"cpu": torch.float32, "cuda": torch.bfloat16}
PATHS: dict[str, Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]] = {
    "ours": multi_scale_deformable_attention,
    "grid_sample": sample_levels,
}
REPORTED = ("forward_ms", "backward_ms", "total_ms", "peak_mib")


def encoder_inputs(device: str, shapes: Shapes) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations and weights: every token samples some cells around its own centre."""
    torch.manual_seed(0)
    rows = [torch.cartesian_prod(torch.arange(h) + 0.5, torch.arange(w) + 0.5) for h, w in shapes]
    cells = [torch.tensor([w, h]) for h, w in shapes]
    centres = torch.cat([yx.flip(1) / cell for yx, cell in zip(rows, cells, strict=True)])
    grid = (1, len(centres), HEADS, len(shapes), POINTS)
    offsets = torch.randn(*grid, 2) * 2 / torch.stack(cells)[:, None]
    locations = centres[:, None, None, None] + offsets
    weights = torch.rand(*grid).flatten(3).softmax(-1).view(grid)
    value = torch.randn(1, len(centres), HEADS, DIM, dtype=VALUES[device])
    return tuple(x.to(device).requires_grad_() for x in (value, locations, weights))


def step(path: str, shapes: Shapes, inputs: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Milliseconds of one forward and one backward pass."""
    value, locations, weights = inputs
    grad = value.detach().flatten(2)

    def now() -> float:
        if value.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() * 1e3

    start = now()
    out = PATHS[path](value, shapes, locations, weights)
    middle = now()
    torch.autograd.grad(out, inputs, grad)
    end = now()
    return {"forward_ms": middle - start, "backward_ms": end - middle, "total_ms": end - start}


def time_in_turns(device: str, repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each path, and the median of the ratios within a turn."""
    shapes = SHAPES[device]
    inputs = encoder_inputs(device, shapes)
    turns = [{path: step(path, shapes, inputs) for path in PATHS} for _ in range(repeats + 1)][1:]
    keys = REPORTED[:3]
    table = {
        path: {key: statistics.median(turn[path][key] for turn in turns) for key in keys}
        for path in PATHS
    }
    table["ratio"] = {
        key: statistics.median(turn["ours"][key] / turn["grid_sample"][key] for turn in turns)
        for key in keys
    }
    return table


def peak_mib(device: str, path: str, threads: int) -> float:
    """What a first step takes beyond its inputs; on the CPU to be called in a fresh process."""
    torch.set_num_threads(threads)
    small = SHAPES[device][-1:]
    step(path, small, encoder_inputs(device, small))  # load what is loaded once
    inputs = encoder_inputs(device, SHAPES[device])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(path, SHAPES[device], inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = _peak_resident_bytes()
    step(path, SHAPES[device], inputs)
    return (_peak_resident_bytes() - before) / 2**20


def _peak_resident_bytes() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: getrusage would give that of the parent process, if larger
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(device: str, threads: int, repeats: int) -> dict[str, dict[str, float]]:
    """Rows ``ours``, ``grid_sample`` and ``ratio``, columns ``REPORTED``."""
    torch.set_num_threads(threads)
    table = time_in_turns(device, repeats)
    for path in PATHS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            table[path]["peak_mib"] = pool.apply(peak_mib, (device, path, threads))
    table["ratio"]["peak_mib"] = table["ours"]["peak_mib"] / table["grid_sample"]["peak_mib"]
    return table


def hardware(device: str) -> str:
    """The chip that did the work."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {len(models)} logical cores"


def commit() -> str:
    """Of this checkout, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


def print_table(title: str, table: dict[str, dict[str, float]]) -> None:
    """One line per path, one for the ratio."""
    print(f"\n{title}\n{'':12}" + "".join(f"{key:>13}" for key in REPORTED))
    for name, row in table.items():
        digits = 2 if name == "ratio" else 1
        print(f"{name:12}" + "".join(f"{row[key]:13.{digits}f}" for key in REPORTED))


def main() -> None:
    """Measure, print, and write what was printed to ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = options.device
    report = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "runs": use_msda("auto", torch.device(device)),
        "levels": SHAPES[device],
        "value": str(VALUES[device]),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "threads": {},
    }
    print(f"{report['runs']}; {report['hardware']}; torch {report['torch']}")
    for threads in (1, 2) if device == "cpu" else (torch.get_num_threads(),):
        table = measure(device, threads, options.repeats)
        print_table(f"{threads} threads" if device == "cpu" else device, table)
        report["threads"][str(threads)] = table
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
