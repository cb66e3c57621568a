"""Try a checkpoint in a browser: see conf/demo.yaml.

``codetr-demo checkpoint=runs/NAME/best.ckpt``
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start


def _demo(cfg: DictConfig, given: Sequence[str]) -> None:
    """Serve the page until interrupted."""
    from codetr.analysis.demo import demo  # after hydra has answered --help and typos

    demo(cfg, given)


def main() -> None:
    """Compose from the command line, and run."""
    start("demo", _demo)
