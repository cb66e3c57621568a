"""Compare our numbers with recorded ones of the official code: python scripts/parity.py FOLDER

Exit code 0 only if every recorded quantity is compared and within its tolerance.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from codetr.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools are not installed

from tools.parity.check import PRECISIONS, check, markdown
from tools.parity.extract import extract
from tools.parity.table import render


def main() -> int:
    """Check every folder and print one table for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="+", help="recorded numbers, such as msda")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: the recorded run's")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    parser.add_argument("--extract", type=Path, help="write a compact copy there, check nothing")
    arguments = parser.parse_args()
    console = Console(width=150, soft_wrap=True)
    try:
        if arguments.extract:
            for folder in arguments.folder:
                console.print(extract(folder, arguments.extract))
            return 0
        reports = []
        for folder in arguments.folder:
            reports.append(check(folder, arguments.precision))
            console.print(render(reports[-1].title, reports[-1].rows))
            if reports[-1].untouched:
                names = ", ".join(reports[-1].untouched)
                console.print(f"{len(reports[-1].untouched)} arrays not compared: {names}")
    except UserError as error:
        console.print(f"error: {error}", style="red")
        return 2
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(markdown(reports), encoding="utf-8")
    problems = []
    if not all(report.rows and all(row.ok for row in report.rows) for report in reports):
        problems.append("some quantities do not hold")
    if any(report.untouched for report in reports):
        problems.append("some recorded arrays are not compared")
    console.print(f"[red]{'; '.join(problems)}" if problems else "all quantities hold")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
