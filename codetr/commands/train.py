"""Train a detector: ``python train.py [group=option ...] [key=value ...]``; see conf/train.yaml."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from codetr.conf_folder import conf_folder
from codetr.training.launcher import register
from codetr.training.shell import one_line_errors
from codetr.training.small_machine import for_this_machine


@hydra.main(config_path=str(conf_folder()), config_name="train", version_base="1.3")
def _run(cfg: DictConfig) -> float | None:
    """Train; returns the validation AP, which sweeps look at."""
    with one_line_errors():
        from codetr.training.train import train  # after hydra has answered --help and typos

        return train(cfg, HydraConfig.get().overrides.task).get("AP")


def main() -> None:
    """Compose from the command line, and run."""
    register()
    sys.argv[1:] = for_this_machine(sys.argv[1:])
    _run()
