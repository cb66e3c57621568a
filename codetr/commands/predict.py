"""Detect objects in images or a video: see conf/predict.yaml.

``codetr-predict checkpoint=runs/NAME/best.ckpt source=FOLDER``
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start


def _predict(cfg: DictConfig, given: Sequence[str]) -> None:
    """Run the detector and write the results."""
    from codetr.inference.command import predict  # after hydra has answered --help and typos

    predict(cfg, given)


def main() -> None:
    """Compose from the command line, and run."""
    start("predict", _predict, record_groups=["evaluation"])
