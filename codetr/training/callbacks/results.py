"""The result of a run: the metrics of its best validation."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from codetr.evaluation import CocoEvaluator

STAGE = "val/"


class BestResult(Callback):
    """Stores ``metrics`` (AP, AP50, ...), ``epoch`` (from 1) and the COCO ``table`` of the
    validation with the highest AP. Its state is in checkpoints.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.epoch = 0
        self.table = ""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the best so far; the earlier of two equal ones stays, as for best.ckpt."""
        values = trainer.callback_metrics
        if trainer.sanity_checking or STAGE + "AP" not in values:
            return
        if not self.metrics or float(values[STAGE + "AP"]) > self.metrics["AP"]:
            self.metrics = {
                name.removeprefix(STAGE): float(value)
                for name, value in values.items()
                if name.startswith(STAGE)
            }
            self.epoch = trainer.current_epoch + 1
            evaluator: CocoEvaluator = pl_module.evaluator  # type: ignore[assignment]
            self.table = evaluator.table()

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"metrics": dict(self.metrics), "epoch": self.epoch, "table": self.table}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.metrics = dict(state_dict["metrics"])
        self.epoch, self.table = state_dict["epoch"], state_dict["table"]
