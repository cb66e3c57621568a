"""Train a detector: ``codetr-train [group=option ...] [key=value ...]``; see conf/train.yaml."""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start
from codetr.training.small_machine import for_this_machine


def _train(cfg: DictConfig, given: Sequence[str]) -> float | None:
    """Train and return the validation AP, the objective of a sweep."""
    from codetr.training.train import train  # after hydra has answered --help and typos

    return train(cfg, given).get("AP")


def main() -> None:
    """Compose from the command line, and run."""
    start("train", _train, choose=for_this_machine)
