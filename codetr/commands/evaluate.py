"""Evaluate a checkpoint: ``python eval.py checkpoint=runs/NAME/best.ckpt``; see conf/eval.yaml."""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from codetr.conf_folder import conf_folder
from codetr.settings.check import OF_RECORD
from codetr.training.launcher import register
from codetr.training.shell import one_line_errors


@hydra.main(config_path=str(conf_folder()), config_name="eval", version_base="1.3")
def _run(cfg: DictConfig) -> float | None:
    """Evaluate; returns the AP."""
    with one_line_errors():
        from codetr.training.evaluate import evaluate  # after hydra has answered --help and typos

        return evaluate(cfg, HydraConfig.get().overrides.task).get("AP")


def main() -> None:
    """Compose from the command line, and run."""
    register(of_record=OF_RECORD)
    _run()
