"""Running jobs on a cluster by submitit (the optional extra ``cluster``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codetr.errors import UserError
from codetr.training.sweeps.local import Done
from codetr.training.sweeps.process import Start, run_to_end

log = logging.getLogger(__name__)

LOST = 4
"""Exit status of a job that the cluster cancelled or lost."""


class SubmititRunner:
    """Submits all jobs as one array and waits for them.

    ``cluster`` is ``slurm``, or ``local`` for processes on this machine; ``parameters`` are
    submitit's (``timeout_min``, ``gpus_per_node``, ``slurm_partition`` ...), and its files go to
    ``folder``. Raises UserError if submitit is not installed or rejects a parameter.
    """

    def __init__(self, cluster: str, parameters: Mapping[str, Any], folder: Path) -> None:
        self.cluster, self.parameters, self.folder = cluster, dict(parameters), folder

    def __call__(self, starts: Sequence[Start], done: Done) -> None:
        """Run all."""
        executor = self._executor()
        # Under this job name, Lightning starts the processes of the job itself.
        own = [replace(s, env={**s.env, "SLURM_JOB_NAME": "interactive"}) for s in starts]
        with executor.batch():
            jobs = [executor.submit(run_to_end, start) for start in own]
        for job, start in zip(jobs, starts, strict=True):
            log.info("%s is job %s: its output in %s", start.folder, job.job_id, job.paths.stdout)
        for index, job in enumerate(jobs):
            error = job.exception()
            if error is not None:
                log.error("job %s: %s", job.job_id, (str(error).splitlines() or [""])[0])
            done(index, LOST if error is not None else job.result())

    def _executor(self) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                f"hydra/launcher=submitit_{self.cluster} needs submitit: install codetr[cluster]"
            ) from error
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            executor.update_parameters(**self.parameters)
        except (RuntimeError, NameError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"submitit ({self.cluster}): {reason}") from error
        return executor
