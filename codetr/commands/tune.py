"""Find a learning rate or a batch size: ``codetr-tune tune=lr``; see conf/tune.yaml."""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start
from codetr.training.small_machine import for_this_machine


def _tune(cfg: DictConfig, given: Sequence[str]) -> None:
    """Run the search and print its result."""
    from codetr.training.tuning.command import tune  # after hydra has answered --help and typos

    tune(cfg, given)


def main() -> None:
    """Compose from the command line, and run."""
    start("tune", _tune, choose=for_this_machine)
