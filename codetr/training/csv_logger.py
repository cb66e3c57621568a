"""A CSV file of the logged values of a run, which is continued on resuming."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from os import SEEK_END
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from codetr.run_folder import RunFolder
from codetr.writing import replacing, writable

STEP = "step"


class CsvLogger(Logger):
    """Writes one row per logged step to ``<folder>/metrics.csv``; new names become new columns.

    A resumed run continues after the rows that were in the file when its checkpoint was written;
    any other run replaces the rows from its first step on.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = RunFolder(Path(folder)).log
        self._columns: list[str] = [STEP]
        self._row: dict[str, Any] = {}  # the row of the last step
        self._place: int | None = None  # its offset in the file in bytes, once written
        self._pending = False
        self._started = False
        self._resumed: list[dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        """The kind of logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty: there is one file per run folder."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Do nothing: the run folder has config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add values to the row of an optimiser step."""
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
        """Write the row of the last step, replacing an earlier version of it."""
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
        """Write the pending row."""
        self.save()

    def read(self) -> list[dict[str, str]]:
        """All written rows; a value that was not logged at a step is an empty string."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: the number of rows, and the last one, which may get more values."""
        self.save()
        rows = self.read()
        return {"rows": len(rows), "last": dict(rows[-1]) if rows else {}}

    @rank_zero_only
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint: continue after the rows of that time."""
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
