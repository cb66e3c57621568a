"""Write the tables and figures of docs/study.md and README.md from benchmarks/study.

``python scripts/study.py NAME=DIR ...`` first adds the runs of a sweep's folder DIR to
benchmarks/study/NAME.json, where NAME is the file of conf/sweep. Runs that are not finished are
written down as such, and replaced when they are. ``--analysis DIR`` adds what scripts/analyse.py
found in checkpoints of study_k and wrote into DIR: encoder, decoder, queries or conflict.

The commit is that of the checkout in which DIR lies, and the hardware this machine's: give
``--commit`` or ``--hardware`` where the runs are from elsewhere.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from codetr.errors import UserError
from codetr.training.error_lines import one_line_errors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools are not installed

from tools.bench.report import hardware
from tools.docs.looks import merge_looks, read_looks, read_results, write_looks
from tools.docs.records import Kept, merge, read_record, write_record
from tools.docs.study import study_figures, with_looks, with_study, with_study_in_short
from tools.sweeps.runs import read_runs

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Add what is given, and write everything anew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweeps", nargs="*", metavar="NAME=DIR", help="runs to add")
    parser.add_argument("--analysis", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--root", type=Path, default=ROOT, help="where benchmarks and docs lie")
    parser.add_argument("--commit", help="of the code that made the runs")
    parser.add_argument("--hardware", help="that they ran on")
    options = parser.parse_args()
    with one_line_errors():
        folder = options.root / "benchmarks/study"
        folder.mkdir(parents=True, exist_ok=True)
        for given in options.sweeps:
            add(given, folder, options.commit, options.hardware)
        analyses = folder / "analyses/study_k.json"
        looks = read_looks(analyses) if analyses.is_file() else []
        for given in options.analysis:
            looks = merge_looks(looks, read_results(given))
            analyses.parent.mkdir(exist_ok=True)
            write_looks(looks, analyses)
        records = {path.stem: read_record(path) for path in sorted(folder.glob("*.json"))}
        page, readme = options.root / "docs/study.md", options.root / "README.md"
        text = with_looks(with_study(page.read_text("utf-8"), records, page), looks, page)
        page.write_text(text, encoding="utf-8")
        short = with_study_in_short(readme.read_text("utf-8"), records, readme)
        readme.write_text(short, encoding="utf-8")
        print(f"wrote {page} and {readme}")
        for name, png in study_figures(records).items():
            (options.root / "docs/images" / name).write_bytes(png)
            print(f"drew docs/images/{name}")


def add(given: str, folder: Path, commit: str | None, machine: str | None) -> None:
    """Merge the runs of NAME=DIR into the record in ``folder``."""
    name, _, source = given.partition("=")
    if not (ROOT / f"conf/sweep/{name}.yaml").is_file() or not source:
        raise UserError(f"{given}: give NAME=DIR, NAME being a file of conf/sweep")
    known = Kept(
        run=read_runs(Path(source))[0],
        commit=commit or commit_of(Path(source)),
        hardware=machine or hardware(torch.device("cpu")),
    )
    kept = [
        replace(known, run=run) if run.metrics is not None else Kept(run=run)
        for run in read_runs(Path(source))
    ]
    path = folder / f"{name}.json"
    before = read_record(path) if path.is_file() else ()
    write_record(merge(before, kept), path)
    done = sum(one.run.metrics is not None for one in kept)
    print(f"{path}: {done} of {len(kept)} runs of {source} are finished")


def commit_of(folder: Path) -> str:
    """Of the checkout that ``folder`` lies in. Raises UserError outside of one."""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise UserError(f"{folder}: lies in no git checkout: give --commit")
    return run.stdout.strip()


if __name__ == "__main__":
    main()
