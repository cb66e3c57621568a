"""The launchers of conf/hydra/launcher, where Hydra finds plugins: in its namespace package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codetr.training.launcher import Runner, SweepLauncher
from codetr.training.sweeps.cluster import SubmititRunner
from codetr.training.sweeps.local import LocalRunner, make_slots


class ProcessLauncher(SweepLauncher):
    """Jobs on this machine: one after another, ``parallel`` of them at once, or one on each of
    ``devices`` (see ``make_slots``).
    """

    def __init__(self, parallel: int = 1, devices: str | Sequence[int | str] | None = None) -> None:
        super().__init__()
        self.parallel, self.devices = parallel, devices

    def runner(self, folder: Path) -> Runner:
        """See ``SweepLauncher``."""
        return LocalRunner(make_slots(self.parallel, self.devices))


class SubmititLauncher(SweepLauncher):
    """Jobs on a cluster, see ``SubmititRunner``."""

    def __init__(self, cluster: str, parameters: Mapping[str, Any]) -> None:
        super().__init__()
        self.cluster, self.parameters = cluster, parameters

    def runner(self, folder: Path) -> Runner:
        """See ``SweepLauncher``."""
        return SubmititRunner(self.cluster, self.parameters, folder / "submitit")
