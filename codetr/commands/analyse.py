"""Analyse and compare trained models: see conf/analyse.yaml.

``codetr-analyse analysis=discriminability checkpoint=[A.ckpt,B.ckpt]``
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start
from codetr.settings.check import RECORD_GROUPS


def _analyse(cfg: DictConfig, given: Sequence[str]) -> None:
    """Run the analysis and write its findings."""
    from codetr.analysis.command import analyse  # after hydra has answered --help and typos

    analyse(cfg, given)


def main() -> None:
    """Compose from the command line, and run."""
    start("analyse", _analyse, record_groups=RECORD_GROUPS)
