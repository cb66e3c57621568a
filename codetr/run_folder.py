"""Which files a run leaves in its folder."""

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
        """The checkpoint with the highest AP; conf/checkpointing has the same name."""
        return self.path / "best.ckpt"

    @property
    def epochs(self) -> Path:
        """Checkpoints of all epochs; checkpointing=every_epoch has the same name."""
        return self.path / "epochs"

    @property
    def ranks(self) -> Path:
        """The folder of what several processes say of themselves while they run."""
        return self.path / "ranks"

    @property
    def detector(self) -> Path:
        """The best detector alone."""
        return self.path / "model.safetensors"

    @property
    def log(self) -> Path:
        """Losses and validation metrics by step."""
        return self.path / "metrics.csv"

    @property
    def curves(self) -> Path:
        """The same as a picture."""
        return self.path / "curves.png"

    @property
    def metrics(self) -> Path:
        """The numbers of the best validation, or of the evaluation."""
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        """COCO results of the evaluation."""
        return self.path / "predictions.json"

    @property
    def mask_predictions(self) -> Path:
        """The same of instance masks."""
        return self.path / "predictions_masks.json"

    @property
    def diagnosis(self) -> Path:
        """What went wrong in the evaluation; tables and pictures of it lie beside."""
        return self.path / "diagnosis.json"

    @property
    def tuning(self) -> Path:
        """A setting that was found by short trainings."""
        return self.path / "tune.json"

    @property
    def tuning_curve(self) -> Path:
        """Losses over learning rates."""
        return self.path / "tune.png"

    @property
    def wandb_id(self) -> Path:
        """Under which number W&B knows the run."""
        return self.path / "wandb_run_id.txt"

    @property
    def job(self) -> Path:
        """What a sweep's job is, and whether it is finished."""
        return self.path / "job.json"

    @property
    def lock(self) -> Path:
        """Held by the process that runs the job."""
        return self.path / "job.lock"

    @property
    def console(self) -> Path:
        """Output of a job that has no terminal of its own."""
        return self.path / "console.txt"
