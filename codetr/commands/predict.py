"""Find objects in images or a video: see conf/predict.yaml.

``python scripts/predict.py checkpoint=runs/NAME/best.ckpt source=FOLDER``
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from codetr.conf_folder import conf_folder
from codetr.training.launcher import register
from codetr.training.shell import one_line_errors


@hydra.main(config_path=str(conf_folder()), config_name="predict", version_base="1.3")
def _run(cfg: DictConfig) -> None:
    """Predict, and write the results."""
    with one_line_errors():
        from codetr.inference.command import predict  # after hydra has answered --help and typos

        predict(cfg, HydraConfig.get().overrides.task)


def main() -> None:
    """Compose from the command line, and run."""
    register()
    _run()
