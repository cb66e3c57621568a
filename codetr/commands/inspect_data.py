"""Inspect a data set: see conf/inspect_data.yaml.

``codetr-inspect data=custom data.root=FOLDER``
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start


def _inspect(cfg: DictConfig, given: Sequence[str]) -> None:
    """Print the findings and write the report page."""
    from codetr.analysis.data_command import inspect  # after hydra has answered --help and typos

    inspect(cfg, given)


def main() -> None:
    """Compose from the command line, and run."""
    start("inspect_data", _inspect, sweeps=False)
