"""The Hydra launcher of sweeps: ``python train.py -m ...``.

Each job is a process of its own, so that jobs can use DDP and share no state.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from codetr.conf_folder import options_given
from codetr.training.error_lines import one_line_errors
from codetr.training.sweeps.jobs import Job, earlier, plan, require_own_folders
from codetr.training.sweeps.local import Done
from codetr.training.sweeps.process import Start
from codetr.training.sweeps.results import JobResult, read_result, write_table

log = logging.getLogger(__name__)


class Runner(Protocol):
    """Runs jobs on this machine or on a cluster."""

    def __call__(self, starts: Sequence[Start], done: Done) -> None:
        """Run all jobs, and call ``done`` after each."""
        ...


class SweepLauncher(Launcher):
    """Runs each job as ``python train.py OVERRIDES`` in ``<sweep folder>/<number>``, groups the
    jobs in W&B, and writes a table of their results.

    A failed job does not stop the others; the sweep then ends with an error that names it. When the
    same command is given again, finished jobs are skipped, and the others resume from their last
    checkpoint.
    """

    def __init__(self) -> None:
        self.config: DictConfig | None = None

    @abstractmethod
    def runner(self, folder: Path) -> Runner:
        """The runner for the jobs of the sweep in ``folder``."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store the configuration of the sweep; each job composes its own."""
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs; return each job's validation AP or its failure."""
        assert self.config is not None, "setup() comes first"
        hydra = self.config.hydra
        configure_log(hydra.hydra_logging, hydra.verbose)
        folder = Path(str(hydra.sweep.dir)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        log.info("sweep of %d jobs in %s", len(job_overrides), folder)
        own = [filter_overrides(overrides) for overrides in job_overrides]
        jobs = plan(own, initial_job_idx, folder, hydra.overrides.task)
        with one_line_errors():
            require_own_folders(jobs)
            results = self._run([j for j in jobs if not j.finished()], folder, hydra)
        results |= {j.number: read_result(j, 0) for j in jobs if j.number not in results}
        in_order = [results[job.number] for job in jobs]
        before = [read_result(job, 0) for job in earlier(folder, initial_job_idx)]
        write_table([*before, *in_order], folder)
        return [_as_return(r, o) for r, o in zip(in_order, job_overrides, strict=True)]

    def _run(self, jobs: Sequence[Job], folder: Path, hydra: DictConfig) -> dict[int, JobResult]:
        """Run ``jobs``; results by job number."""
        script = Path(sys.argv[0]).absolute()
        options = options_given(hydra)
        env = {**os.environ, "WANDB_RUN_GROUP": folder.name}
        starts = []
        for job in jobs:
            log.info("job %d: %s", job.number, job.label)
            job.run.metrics.unlink(missing_ok=True)
            job.note(finished=False)
            command = tuple(job.command(script, options))
            starts.append(Start(command=command, folder=job.folder, env=env))
        results: dict[int, JobResult] = {}

        def done(index: int, exit_code: int) -> None:
            job = jobs[index]
            result = read_result(job, exit_code)
            results[job.number] = result
            if result.metrics is None:
                log.error("job %d failed (status %d): see %s", job.number, exit_code, job.folder)
            else:
                job.note(finished=True)

        if starts:
            self.runner(folder)(starts, done)
        return results


def _as_return(result: JobResult, overrides: Sequence[str]) -> JobReturn:
    answer = JobReturn(overrides=overrides)
    if result.metrics is None:
        answer.status = JobStatus.FAILED
        answer.return_value = CompactHydraException(
            f"sweep job {result.job.number} ({result.job.label}) failed with exit status "
            f"{result.exit_code}: see its message above or in {result.job.folder}"
        )
    else:
        answer.status = JobStatus.COMPLETED
        answer.return_value = result.metrics.get("AP", math.nan)
    return answer


def sweep_name(overrides: Sequence[str]) -> str:
    """The name of a sweep's folder: ``NAME`` of ``name=NAME``, or else a hash of the overrides, so
    that the same command finds its jobs again.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    given = {o.key_or_group: str(o.value()) for o in parsed if not o.is_sweep_override()}
    if "name" in given:
        return given["name"]
    mark = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]
    return f"{given.get('sweep', 'sweep')}-{mark}"


OmegaConf.register_new_resolver("codetr.sweep_name", sweep_name, replace=True)
