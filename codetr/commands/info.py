"""Report the size and cost of a model: see conf/info.yaml.

``codetr-info experiment=NAME`` or ``checkpoint=FILE``
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start


def _info(cfg: DictConfig, given: Sequence[str]) -> None:
    """Build the model, measure it and print the result."""
    from codetr.inference.info import info  # after hydra has answered --help and typos

    print("\n".join(info(cfg, given).lines()))


def main() -> None:
    """Compose from the command line, and run."""
    start("info", _info, sweeps=False)
