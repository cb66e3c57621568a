"""Evaluate a checkpoint: ``codetr-eval checkpoint=runs/NAME/best.ckpt``; see conf/eval.yaml."""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start
from codetr.settings.check import RECORD_GROUPS


def _evaluate(cfg: DictConfig, given: Sequence[str]) -> float | None:
    """Evaluate and return the AP."""
    from codetr.training.evaluate import evaluate  # after hydra has answered --help and typos

    return evaluate(cfg, given).get("AP")


def main() -> None:
    """Compose from the command line, and run."""
    start("eval", _evaluate, record_groups=RECORD_GROUPS)
