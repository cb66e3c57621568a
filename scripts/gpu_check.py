"""What only a GPU can tell: ``python scripts/gpu_check.py [PART ...] [--json FILE]``.

PARTs are: env (versions, what the device reaches), kernel (deformable attention is right), tune
(layouts of its kernels), sdpa (PyTorch's attention at sizes that change), nms (the RPN's
suppression), syncs (waits of a training step), launches (its kernels), train (its results). All of
them if none is named. One line per fact; a part that fails does not end the others. The last line
is pass or fail, and so is the exit status. Without a GPU it goes as far as a CPU can, and says what
it skips.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from codetr.training.error_lines import one_line_errors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools are not installed

from tools.bench.gpu import device, operator, step
from tools.bench.gpu.facts import run_parts, verdict
from tools.bench.report import make_report, write_json
from tools.bench.workload import ModelOptions, configure_process

PARTS = {
    "env": device.env,
    "kernel": operator.kernel,
    "tune": operator.tune,
    "sdpa": device.sdpa,
    "nms": operator.nms,
    "syncs": step.syncs,
    "launches": step.launches,
    "train": step.train,
}


def main() -> int:
    """0 where nothing is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=found, help=f"here {found}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a report")
    given = parser.parse_args()
    unknown = [name for name in given.parts if name not in PARTS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such part: choose from {', '.join(PARTS)}")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is not repeatable
    options = ModelOptions(device=given.device)
    with one_line_errors():
        options.check()
        configure_process(options)
        parts = {name: PARTS[name] for name in given.parts or PARTS}
        tables = run_parts(parts, options.torch_device)
        passed, line = verdict(tables)
        if given.json:
            asked = {"parts": list(parts), "device": given.device}
            write_json(make_report("gpu_check", options.torch_device, asked, tables), given.json)
    print(line)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
