"""Look into trained models, and compare them: see conf/analyse.yaml.

``python scripts/analyse.py analysis=discriminability checkpoint=[A.ckpt,B.ckpt]``
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from codetr.conf_folder import conf_folder
from codetr.settings.check import OF_RECORD
from codetr.training.launcher import register
from codetr.training.shell import one_line_errors


@hydra.main(config_path=str(conf_folder()), config_name="analyse", version_base="1.3")
def _run(cfg: DictConfig) -> None:
    """Analyse, and write what was found."""
    with one_line_errors():
        from codetr.analysis.command import analyse  # after hydra has answered --help and typos

        analyse(cfg, HydraConfig.get().overrides.task)


def main() -> None:
    """Compose from the command line, and run."""
    register(of_record=OF_RECORD)
    _run()
