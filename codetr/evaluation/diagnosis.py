"""Error analysis of an evaluation: best score threshold, confusions and kinds of errors."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from codetr.csv_text import as_cell
from codetr.evaluation.confusion import Confusion, confusion
from codetr.evaluation.error_kinds import Errors, Kind, find_errors
from codetr.evaluation.figures import (
    confusion_figure,
    error_figure,
    f1_figure,
    precision_recall_figure,
    save,
)
from codetr.evaluation.ground_truth import ImageTruth
from codetr.evaluation.matching import Floats, make_scenes
from codetr.evaluation.precision_recall import RECALLS, THRESHOLDS, Curves, curves, rank
from codetr.evaluation.report import write_json
from codetr.run_folder import RunFolder
from codetr.writing import write_text

PICTURES = ("precision_recall.png", "f1.png", "confusion_matrix.png", "errors.png")
_MOST_CONFUSIONS = 10  # that are printed
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Results at IoU 0.5: ``curves`` of each class, ``confusion`` of classes at the threshold of
    the best mean F1, ``errors`` by kind. ``names`` (K,): of the classes.
    """

    names: tuple[str, ...]
    curves: Curves
    confusion: Confusion
    errors: Errors

    def threshold_line(self) -> str:
        """A line for the log: the score threshold of the best mean F1."""
        best = self.curves.best()
        return (
            f"best mean F1 over classes: {best.f1:.3f} at threshold={best.threshold:.3f} "
            f"(precision {best.precision:.3f}, recall {best.recall:.3f})"
        )

    def error_table(self) -> Table:
        """Number of errors of each kind and the AP50 they cost."""
        table = Table("error", "meaning", title=f"errors at AP50 {self.errors.ap50():.3f}")
        table.add_column("number", justify="right")
        table.add_column("AP50 lost", justify="right")
        for kind in Kind:
            number, cost = self.errors.count(kind), self.errors.cost(kind)
            table.add_row(kind.value, kind.meaning, str(number), f"{cost:0.3f}")
        return table

    def confusion_table(self) -> Table | None:
        """The most frequent confusions of two classes; None where there is none."""
        pairs = self.confusion.most_frequent(_MOST_CONFUSIONS)
        if not pairs:
            return None
        title = f"most frequent confusions, scores above {self.confusion.threshold:.3f}"
        table = Table("true", "found as", title=title)
        table.add_column("times", justify="right")
        table.add_column("of the true ones", justify="right")
        for true, predicted, times in pairs:
            share = times / self.confusion.counts[true].sum()
            names = escape(self.names[true]), escape(self.names[predicted])
            table.add_row(*names, str(times), f"{share:.1%}")
        return table

    def summary(self) -> dict[str, Any]:
        """Thresholds and errors: the content of ``diagnosis.json``."""
        own = {self.names[k]: asdict(self.curves.best_of(int(k))) for k in self.curves.measured}
        return {
            "best_threshold": asdict(self.curves.best()),
            "per_class": own,
            "AP50": self.errors.ap50(),
            "errors": {
                kind.value: {"number": self.errors.count(kind), "AP50_lost": self.errors.cost(kind)}
                for kind in Kind
            },
        }

    def write(self, folder: Path) -> list[Path]:
        """Write ``diagnosis.json``, the curves and the confusion matrix as CSV files, and the
        figures, whose paths are returned.
        """
        write_json(RunFolder(folder).diagnosis, self.summary())
        measured = self.curves.measured
        names = [self.names[k] for k in measured]
        precision, f1 = self.curves.precision[measured], self.curves.f1_above[measured]
        _write_curves(folder / "precision_recall.csv", "recall", RECALLS, names, precision)
        _write_curves(folder / "f1.csv", "threshold", THRESHOLDS, names, f1)
        heads, counts = [*self.names, "background"], self.confusion.counts.tolist()
        rows = ([name, *row] for name, row in zip(heads, counts, strict=True))
        _write_csv(folder / "confusion_matrix.csv", ["true", *self.names, "missed"], rows)
        figures = (
            precision_recall_figure(self.curves, self.names),
            f1_figure(self.curves, self.names),
            confusion_figure(self.confusion, self.names),
            error_figure(self.errors),
        )
        paths = [folder / name for name in PICTURES]
        for figure, path in zip(figures, paths, strict=True):
            save(figure, path)
        return paths


def diagnose(
    detections: Mapping[int, Tensor],
    truth: Mapping[int, ImageTruth],
    names: Sequence[str],
    max_detections: int,
) -> Diagnosis:
    """The diagnosis of ``detections``: by image id, rows (n, 6) float64 of label, score and x, y,
    w, h in pixels, of which the best ``max_detections`` of each image and class count. ``truth``
    must hold these images, with at least one object that is not a crowd region.
    """
    scenes = make_scenes(detections, truth, max_detections)
    found = curves(rank(scenes, len(names)))
    return Diagnosis(
        names=tuple(names),
        curves=found,
        confusion=confusion(scenes, len(names), found.best().threshold),
        errors=find_errors(scenes, len(names)),
    )


def _write_curves(
    path: Path, axis: str, points: Floats, names: Sequence[str], values: Floats
) -> None:
    """A row per point of ``axis``: ``points`` (P,), the mean over classes, then each class;
    ``values`` (K, P).
    """
    table = np.column_stack([points, values.mean(axis=0), values.T])
    rows = ([round(number, _DIGITS) for number in row] for row in table.tolist())
    _write_csv(path, [axis, "mean of all", *names], rows)


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Class names are escaped, so that a spreadsheet does not read them as formulas."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    for row in (head, *rows):
        writer.writerow([as_cell(v) if isinstance(v, str) else v for v in row])
    write_text(path, text.getvalue())
