"""Write a sweep's page from the files of its runs: ``python scripts/sweep_report.py DIR``.

DIR is a sweep's folder (runs/sweeps/NAME) or any folder of runs; no network is needed. It gets
report.md with its plots, report.html, which is one file, and report.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from codetr.errors import UserError
from codetr.training.error_lines import one_line_errors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools are not installed

from tools.sweeps.report import make_page, write_report
from tools.sweeps.runs import read_runs
from tools.sweeps.variants import group_runs
from tools.sweeps.wandb_report import push_report


def main() -> None:
    """Write the page, and push it if asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--push", metavar="PROJECT", help="also as a W&B report in that project")
    parser.add_argument("--entity", default="", help="W&B user or team of the project")
    options = parser.parse_args()
    with one_line_errors():
        for path in write_report(options.folder):
            print(f"wrote {path}")
        if options.push:
            from codetr.training.wandb_logger import has_wandb_key  # seconds, for a push alone

            if not has_wandb_key():
                raise UserError("--push: no W&B key: set WANDB_API_KEY or run `wandb login`")
            name = options.folder.absolute().name
            page = make_page(name, group_runs(read_runs(options.folder)))
            print(f"pushed {push_report(page, name, options.push, options.entity)}")


if __name__ == "__main__":
    main()
