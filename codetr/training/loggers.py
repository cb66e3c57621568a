"""Loggers: a CSV file that survives resuming, and W&B that cannot end a run."""

from __future__ import annotations

import csv
import io
import logging
import netrc
import os
import socket
from argparse import Namespace
from collections.abc import Callable, Mapping
from os import SEEK_END
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from codetr.run_folder import RunFolder
from codetr.writing import replacing, writable

log = logging.getLogger(__name__)

STEP = "step"
TAG_LENGTH = 64
BEST_METRICS = ("val/AP", "val/AP50", "val/AP75")
"""Of which W&B's summary has the highest."""
EVALUATED = ("val/", "eval/")
UNDEFINED = -1.0
"""A metric of no object, in COCO's convention."""
PATIENCE = 5.0
"""Seconds in which W&B's server must answer at all; then, ``START`` seconds for a run to start."""
START = 30.0


class CsvLogger(Logger):
    """One row per logged step in ``<folder>/metrics.csv``; new names become new columns.

    Rows of the same step are merged. A run that is resumed goes on after the rows that stood in
    the file when its checkpoint was written; any other replaces those at or after its first step.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = RunFolder(Path(folder)).log
        self._columns: list[str] = [STEP]
        self._row: dict[str, Any] = {}  # of the last step
        self._place: int | None = None  # where it stands in the file, if it does
        self._pending = False
        self._started = False
        self._resumed: list[dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        """The kind of logger."""
        return "csv"

    @property
    def version(self) -> str:
        """One file per run folder, hence always empty."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Nothing: the run folder has config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add numbers of one optimiser step."""
        step = int(step or 0)
        if not self._started:
            self._continue(step)
        if self._row and self._row[STEP] != step:
            self.save()
            self._row, self._place = {}, None
        self._pending = True
        self._row = {STEP: step, **self._row} | {
            key: float(value) for key, value in metrics.items()
        }

    @rank_zero_only
    def save(self) -> None:
        """Write the row of the last step, in place of what was written of it before."""
        if not self._pending:
            return
        self._pending = False
        new = [key for key in self._row if key not in self._columns]
        self._columns += new
        if new or not self.path.exists():
            rows = self.read()
            self._write([*(rows if self._place is None else rows[:-1]), self._row])
            return
        with writable(self.path), self.path.open("r+", newline="") as file:
            self._place = file.seek(0, SEEK_END) if self._place is None else self._place
            file.seek(self._place)
            file.truncate()
            csv.DictWriter(file, self._columns).writerow(self._row)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is pending."""
        self.save()

    def read(self) -> list[dict[str, str]]:
        """All written rows; a number that was not logged at a step is an empty string."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: how many rows are written, and the last one, which may still grow."""
        self.save()
        rows = self.read()
        return {"rows": len(rows), "last": dict(rows[-1]) if rows else {}}

    @rank_zero_only
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint: the first row that is logged will come after those of then."""
        before = self.read()[: max(state["rows"] - 1, 0)]
        if state["rows"] and len(before) == state["rows"] - 1:
            self._resumed = [*before, dict(state["last"])]

    def _continue(self, step: int) -> None:
        """Keep the rows of a file that is already there."""
        self._started = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = self._resumed
        if rows is None:
            rows = [row for row in self.read() if int(row[STEP]) < step]
        if rows:
            self._columns = list(dict.fromkeys(name for row in rows for name in row))
        if rows:
            self._write(rows)
            if int(rows[-1][STEP]) == step:
                self._row = {**rows[-1], STEP: step}
            else:
                self._place = None
        else:
            self.path.unlink(missing_ok=True)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="")
        writer.writeheader()
        writer.writerows(rows[:-1])
        self._place = len(text.getvalue().encode())
        writer.writerows(rows[-1:])
        with replacing(self.path) as file:
            file.write(text.getvalue().encode())


def wandb_server() -> SplitResult:
    """The address of W&B: WANDB_BASE_URL or the public one."""
    return urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")


def require_connection(server: SplitResult) -> None:
    """Raise OSError where nothing answers at an address within ``PATIENCE``. Through a proxy the
    way is not known here: then nothing is tried.
    """
    if not getproxies():
        port = server.port or {"http": 80}.get(server.scheme, 443)
        socket.create_connection((server.hostname or "", port), timeout=PATIENCE).close()


def has_wandb_key() -> bool:
    """Whether a W&B key is set, by WANDB_API_KEY or ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(wandb_server().netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def swept_tags(swept: Mapping[str, Any]) -> list[str]:
    """``seed=1`` for ``{"seed": 1}``, keys without groups; W&B takes 64 characters at most."""
    return [f"{key.rpartition('.')[2]}={value}"[:TAG_LENGTH] for key, value in swept.items()]


class SafeWandbLogger(WandbLogger):
    """W&B that is offline if no key is set, and that never ends a run.

    If W&B cannot start online within seconds, a warning says so and the run is logged offline. If
    it fails later, one warning says so and the run continues without it (metrics.csv has the same
    numbers). ``WANDB_MODE=disabled`` logs nothing. What a sweep varied in this run (``swept``)
    becomes tags. The summary has the best of each validation metric. The run's id is kept in
    ``folder``: where the training is resumed (``resumes`` is not None), the same W&B run is
    continued.
    """

    def __init__(
        self,
        folder: str | Path,
        project: str,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        offline: bool | None = None,
        run_id: str | None = None,
        swept: Mapping[str, Any] | None = None,
        resumes: str | None = None,
    ) -> None:
        self._id_file = RunFolder(Path(folder)).wandb_id
        if run_id is None and resumes is not None and self._id_file.is_file():
            run_id = self._id_file.read_text().strip() or None
        if offline is None:
            mode = os.environ.get("WANDB_MODE", "")
            offline = mode in ("offline", "dryrun") or (mode != "online" and not has_wandb_key())
        disabled = os.environ.get("WANDB_MODE") == "disabled"
        super().__init__(
            project=project,
            name=name,
            save_dir=folder,
            offline=offline,
            id=run_id,
            group=group,
            tags=[*(tags or []), *swept_tags(swept or {})],
            resume="allow" if run_id else None,
            settings={"init_timeout": START},
        )
        self._broken = disabled

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started on first use."""
        if self._experiment is not None:
            return self._experiment
        if os.environ.get("WANDB_MODE") == "disabled":
            return DummyExperiment()
        start: Callable[[Any], Any] = WandbLogger.experiment.fget  # type: ignore[attr-defined]
        try:
            if not self._offline:
                require_connection(wandb_server())
            run = start(self)
        except Exception as error:
            if self._offline:
                raise
            log.warning(
                "W&B cannot start online (%s): this run is logged OFFLINE. Upload it later "
                "with `wandb sync`, or give logger.wandb.offline=true at once",
                _one_line(error),
            )
            self._experiment, self._offline = None, True
            self._wandb_init["mode"] = "offline"
            run = start(self)
        for metric in BEST_METRICS:
            run.define_metric(metric, summary="max")
        self._id_file.parent.mkdir(parents=True, exist_ok=True)
        self._id_file.write_text(f"{run.id}\n")
        folder = Path(run.dir).parent
        state = "offline" if self._offline else "online"
        log.info(
            "W&B run (%s): %s - view it with `wandb leet %s`%s",
            state,
            folder,
            folder,
            f", upload it with `wandb sync {folder}`" if self._offline else "",
        )
        return run

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run ``action``; after its first failure say so, and do nothing from then on."""
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # whatever W&B raises, training continues
            self._broken = True
            log.warning(
                "W&B failed (%s): training continues without it; the run folder has metrics.csv "
                "and pictures",
                _one_line(error),
            )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers of one optimiser step; COCO's -1, which stands for none, is left out."""
        known = {
            name: value
            for name, value in metrics.items()
            if not (value == UNDEFINED and name.startswith(EVALUATED))
        }
        self._guarded(lambda: WandbLogger.log_metrics(self, known, step))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log the configuration."""
        self._guarded(lambda: WandbLogger.log_hyperparams(self, params))

    @rank_zero_only
    def log_image(
        self, key: str, images: list[Any], step: int | None = None, **kwargs: Any
    ) -> None:
        """Log pictures."""
        self._guarded(lambda: WandbLogger.log_image(self, key, images, step, **kwargs))

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log a table."""
        self._guarded(lambda: WandbLogger.log_table(self, key, columns, data, dataframe, step))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, marked as failed where it did not succeed."""
        if self._experiment is not None:
            self._guarded(
                lambda: self._experiment.finish(  # type: ignore[union-attr]
                    exit_code=0 if status == "success" else 1
                )
            )


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
