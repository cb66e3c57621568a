"""The files in the folder of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """The files in the folder ``path`` of a training run, an evaluation or a sweep's job."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration of training."""
        return self.path / "config.yaml"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the highest AP, as named in conf/checkpointing."""
        return self.path / "best.ckpt"

    @property
    def epochs(self) -> Path:
        """The folder of checkpoints of all epochs, as named in checkpointing=every_epoch."""
        return self.path / "epochs"

    @property
    def ranks(self) -> Path:
        """The folder of heartbeats of a run with several processes."""
        return self.path / "ranks"

    @property
    def detector(self) -> Path:
        """The weights of the best detector."""
        return self.path / "model.safetensors"

    @property
    def log(self) -> Path:
        """Losses and validation metrics by step."""
        return self.path / "metrics.csv"

    @property
    def curves(self) -> Path:
        """A plot of losses and validation metrics."""
        return self.path / "curves.png"

    @property
    def metrics(self) -> Path:
        """The metrics of the best validation, or of the evaluation."""
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        """COCO results of the evaluation."""
        return self.path / "predictions.json"

    @property
    def mask_predictions(self) -> Path:
        """COCO results of the evaluation for masks."""
        return self.path / "predictions_masks.json"

    @property
    def diagnosis(self) -> Path:
        """The error analysis of the evaluation; its tables and figures are beside it."""
        return self.path / "diagnosis.json"

    @property
    def tuning(self) -> Path:
        """The setting found by codetr-tune."""
        return self.path / "tune.json"

    @property
    def tuning_curve(self) -> Path:
        """A plot of losses over learning rates by codetr-tune."""
        return self.path / "tune.png"

    @property
    def wandb_id(self) -> Path:
        """The id of the run in W&B."""
        return self.path / "wandb_run_id.txt"

    @property
    def job(self) -> Path:
        """The state of a sweep's job: its overrides and whether it is finished."""
        return self.path / "job.json"

    @property
    def lock(self) -> Path:
        """Held by the process that runs the job."""
        return self.path / "job.lock"

    @property
    def console(self) -> Path:
        """Output of a job without a terminal."""
        return self.path / "console.txt"
