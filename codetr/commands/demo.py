"""Try a checkpoint in a browser: see conf/demo.yaml.

``python scripts/demo.py checkpoint=runs/NAME/best.ckpt``
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from codetr.conf_folder import conf_folder
from codetr.training.launcher import register
from codetr.training.shell import one_line_errors


@hydra.main(config_path=str(conf_folder()), config_name="demo", version_base="1.3")
def _run(cfg: DictConfig) -> None:
    """Show the page until it is stopped."""
    with one_line_errors():
        from codetr.analysis.demo import demo  # after hydra has answered --help and typos

        demo(cfg, HydraConfig.get().overrides.task)


def main() -> None:
    """Compose from the command line, and run."""
    register()
    _run()
