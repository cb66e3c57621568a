"""Look into trained models, and compare them: see conf/analyse.yaml.

``codetr-analyse analysis=discriminability checkpoint=[A.ckpt,B.ckpt]``
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start
from codetr.settings.check import OF_RECORD


def _analyse(cfg: DictConfig, given: Sequence[str]) -> None:
    """Analyse, and write what was found."""
    from codetr.analysis.command import analyse  # after hydra has answered --help and typos

    analyse(cfg, given)


def main() -> None:
    """Compose from the command line, and run."""
    start("analyse", _analyse, of_record=OF_RECORD)
