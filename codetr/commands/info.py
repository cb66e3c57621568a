"""What a model costs: see conf/info.yaml.

``codetr-info experiment=NAME`` or ``checkpoint=FILE``
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start


def _info(cfg: DictConfig, given: Sequence[str]) -> None:
    """Build, measure, print."""
    from codetr.inference.info import info  # after hydra has answered --help and typos

    print("\n".join(info(cfg, given).lines()))


def main() -> None:
    """Compose from the command line, and run."""
    start("info", _info, sweeps=False)
