"""The curves of a run as one figure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codetr.run_folder import RunFolder
from codetr.training.csv_logger import STEP, CsvLogger

Curve = list[tuple[float, float]]
Corner = Literal["upper left", "upper right"]


def read_curves(rows: Sequence[Mapping[str, str]], steps_per_epoch: int) -> dict[str, Curve]:
    """(epoch, value) pairs by name, from the rows of metrics.csv; epochs are fractional."""
    curves: dict[str, Curve] = defaultdict(list)
    for row in rows:
        epoch = (int(row[STEP]) + 1) / steps_per_epoch
        for name, text in row.items():
            if text != "" and name not in (STEP, "epoch"):
                curves[name].append((epoch, float(text)))
    return dict(curves)


def plot_curves(curves: Mapping[str, Curve], path: Path) -> None:
    """Plot total loss, each scheme's part of it and validation AP over epochs to a PNG file."""
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    total, schemes, quality = figure.subplots(1, 3)
    _draw(total, {"loss": curves.get("loss", [])}, "total loss", "upper right")
    _draw(
        schemes,
        {n.removeprefix("loss_"): c for n, c in curves.items() if n.startswith("loss_")},
        "loss per scheme",
        "upper right",
    )
    shown = {n: curves[n] for n in ("val/AP", "val/AP50", "val/AP75") if n in curves}
    _draw(quality, shown, "validation", "upper left")
    quality.set_ylim(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, curves: Mapping[str, Curve], title: str, corner: Corner) -> None:
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True) if points else ([], []), label=name, marker=".")
    axes.set(title=title, xlabel="epoch")
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize="small", loc=corner)


class CurvePlot(Callback):
    """Redraws ``<folder>/curves.png`` from metrics.csv after every epoch."""

    def __init__(self, folder: str | Path) -> None:
        self.path = RunFolder(Path(folder)).curves

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, on rank 0."""
        self._redraw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw again: values of the last epoch are logged after its end."""
        self._redraw(trainer)

    def _redraw(self, trainer: Trainer) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, CsvLogger)]
        if not (trainer.is_global_zero and loggers):
            return
        loggers[0].save()
        rows = loggers[0].read()
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        if rows:
            plot_curves(read_curves(rows, per_epoch), self.path)
