"""Find a learning rate or a batch size: ``python scripts/tune.py tune=lr``; see conf/tune.yaml."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from codetr.conf_folder import conf_folder
from codetr.training.launcher import register
from codetr.training.shell import one_line_errors
from codetr.training.small_machine import for_this_machine


@hydra.main(config_path=str(conf_folder()), config_name="tune", version_base="1.3")
def _run(cfg: DictConfig) -> None:
    """Find, and say what was found."""
    with one_line_errors():
        from codetr.training.tuning.command import tune  # after hydra has answered --help and typos

        tune(cfg, HydraConfig.get().overrides.task)


def main() -> None:
    """Compose from the command line, and run."""
    register()
    sys.argv[1:] = for_this_machine(sys.argv[1:])
    _run()
