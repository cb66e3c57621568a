"""List published weights or download them: see conf/zoo.yaml.

``codetr-zoo [checkpoint=zoo:NAME]``
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start


def _zoo(cfg: DictConfig, given: Sequence[str]) -> None:
    """Print the tables, or download ``checkpoint`` and print its path."""
    from rich.console import Console  # after hydra has answered --help and typos

    from codetr.checkpoints.zoo import find_entry, read_zoo, zoo_folder
    from codetr.checkpoints.zoo_files import fetched_file
    from codetr.checkpoints.zoo_table import LEGEND, zoo_tables
    from codetr.settings import check_settings

    check_settings(cfg, given, nulls=True)
    if cfg.checkpoint is not None:
        print(fetched_file(find_entry(cfg.checkpoint), cfg.trust))
        return
    Console().print(*zoo_tables(read_zoo().values()))
    print(LEGEND)
    print(f"files and tables of your own: {zoo_folder()} (set by CODETR_HOME)")


def main() -> None:
    """Compose from the command line, and run."""
    start("zoo", _zoo, sweeps=False)
