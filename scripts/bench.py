"""Measure ours against a baseline in one run: ``python scripts/bench.py NAME [--json FILE]``.

NAME is one of: op (deformable attention), step (a training step), launches (operators of a step),
infer (inference), aux_heads (the cost of more auxiliary heads), data (the input pipeline), eval
(COCO metrics), long_run (memory and open files over 20,000 steps). On a machine with other work set
``OMP_WAIT_POLICY=passive``, else threads that are not running are waited for.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from codetr.training.error_lines import one_line_errors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools are not installed

from tools.bench.options import add_arguments, from_arguments
from tools.bench.report import make_report, render, write_json

NAMES = ("op", "step", "launches", "infer", "aux_heads", "data", "eval", "long_run")


def main() -> None:
    """Measure, print, and write what was printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="NAME")
    parsers = {name: commands.add_parser(name) for name in NAMES}
    for name in set(sys.argv[1:2]) & parsers.keys():  # import only what is asked for
        benchmark = importlib.import_module(f"tools.bench.{name}")
        parsers[name].description = benchmark.__doc__
        add_arguments(parsers[name], benchmark.Options)
        parsers[name].add_argument("--json", type=Path, metavar="FILE", help="write a report")
    parsed = parser.parse_args()
    options = from_arguments(benchmark.Options, parsed)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with one_line_errors():
        options.check()
        if options.threads:
            torch.set_num_threads(options.threads)
        tables = benchmark.run(options)
        report = make_report(parsed.benchmark, options.torch_device, asdict(options), tables)
        console = Console()
        console.print(f"{report.hardware}; {report.threads} threads; torch {report.torch}")
        for table in tables:
            console.print(render(table))
        if parsed.json:
            write_json(report, parsed.json)


if __name__ == "__main__":
    main()
