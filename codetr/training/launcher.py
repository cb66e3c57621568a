"""Sweeps: every job is a command of its own, so that DDP works in it and its memory is its own."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
COLUMNS = {"AP": "AP", "AP50": "AP50", "step_time_s": "s / step", "peak_memory_gib": "memory GiB"}
"""What a sweep's table shows of each job's metrics.json, and under which heading."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """``overrides`` are those in which the job differs from others; ``metrics`` is None where the
    job failed."""

    number: int
    overrides: tuple[str, ...]
    exit_code: int
    metrics: Mapping[str, Any] | None


class ProcessLauncher(Launcher):
    """Runs sweep jobs one after the other as ``python train.py OVERRIDES`` in
    ``<sweep folder>/<number>``, groups them in W&B, and writes a table of their results.

    A job that fails does not stop the others; the sweep then ends with an error that names it.
    """

    def __init__(self) -> None:
        self.config: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take the configuration of the sweep; jobs compose theirs themselves."""
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs; returns each job's validation AP, or its failure."""
        assert self.config is not None, "setup() comes first"
        hydra = self.config.hydra
        configure_log(hydra.hydra_logging, hydra.verbose)
        folder = Path(str(hydra.sweep.dir)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        log.info("sweep of %d jobs in %s", len(job_overrides), folder)
        results = [
            self._run(initial_job_idx + i, overrides, folder, hydra.job.config_name)
            for i, overrides in enumerate(job_overrides)
        ]
        results = with_differences(results)
        write_report(results, folder)
        return [_as_return(result, job) for result, job in zip(results, job_overrides, strict=True)]

    def _run(
        self, number: int, overrides: Sequence[str], folder: Path, config_name: str
    ) -> JobResult:
        shown = tuple(filter_overrides(overrides))
        log.info("job %d: %s", number, " ".join(shown))
        target = folder / str(number)
        (target / METRICS_FILE).unlink(missing_ok=True)
        command = job_command(shown, number, folder, config_name)
        exit_code = run_job(command, {**os.environ, "WANDB_RUN_GROUP": folder.name})
        metrics = None
        if exit_code == 0 and (target / METRICS_FILE).is_file():
            metrics = json.loads((target / METRICS_FILE).read_text())
        else:
            log.error("job %d failed (exit status %d): see %s", number, exit_code, target)
        return JobResult(number=number, overrides=shown, exit_code=exit_code, metrics=metrics)


def job_command(overrides: Sequence[str], number: int, folder: Path, config_name: str) -> list[str]:
    """The command of one job, without ``-m``: Lightning's DDP repeats it for its processes."""
    return [
        sys.executable,
        str(Path(sys.argv[0]).absolute()),
        f"--config-name={config_name}",
        *(override for override in overrides if not override.startswith("name=")),
        f"name={folder.name}_{number}",
        f"hydra.run.dir='{folder / str(number)}'",
    ]


def run_job(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a command to its end and return its exit status. It does not outlive this process's
    SIGTERM; Ctrl-C reaches it by itself, and it gets the time to save.
    """
    process = subprocess.Popen(command, env=dict(env))

    def stop(signum: int, frame: FrameType | None) -> None:
        process.terminate()
        process.wait()
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def with_differences(results: Sequence[JobResult]) -> list[JobResult]:
    """The results with only those overrides that not all jobs have."""
    if len(results) < 2:
        return list(results)
    common = set.intersection(*(set(result.overrides) for result in results))
    return [
        JobResult(
            number=r.number,
            overrides=tuple(o for o in r.overrides if o not in common),
            exit_code=r.exit_code,
            metrics=r.metrics,
        )
        for r in results
    ]


def table_rows(results: Sequence[JobResult]) -> list[list[str]]:
    """Heading and one row per job, as text."""
    rows = [["job", "overrides", *COLUMNS.values()]]
    for result in results:
        values = result.metrics or {}
        numbers = [values.get(key) for key in COLUMNS]
        cells = ["-" if n is None else f"{n:.3f}" for n in numbers]
        if result.metrics is None:
            cells[0] = "failed"
        rows.append([str(result.number), " ".join(result.overrides), *cells])
    return rows


def write_report(results: Sequence[JobResult], folder: Path) -> None:
    """Print the table, and write it as sweep.md and sweep.csv."""
    heading, *rows = table_rows(results)
    table = Table(*heading, title=f"sweep {folder.name}")
    for row in rows:
        table.add_row(*map(escape, row))  # [atss] is no markup
    Console().print(table)
    lines = [heading, ["---"] * len(heading), *rows]
    markdown = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    (folder / "sweep.md").write_text(markdown)
    with (folder / "sweep.csv").open("w", newline="") as file:
        csv.writer(file).writerows([heading, *rows])


def _as_return(result: JobResult, overrides: Sequence[str]) -> JobReturn:
    answer = JobReturn(overrides=overrides)
    if result.metrics is None:
        answer.status = JobStatus.FAILED
        answer.return_value = CompactHydraException(
            f"sweep job {result.number} ({' '.join(result.overrides)}) failed with exit status "
            f"{result.exit_code}: its message is above"
        )
    else:
        answer.status = JobStatus.COMPLETED
        answer.return_value = result.metrics.get("AP", math.nan)
    return answer


def register() -> None:
    """Let hydra find the launcher of conf/hydra/launcher/process.yaml; call before ``hydra.main``.

    Hydra takes launchers from the package ``hydra_plugins`` alone: this stands for one there.
    """
    Plugins.instance().class_name_to_class["hydra_plugins.codetr.ProcessLauncher"] = ProcessLauncher
