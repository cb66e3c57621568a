"""The folder of the configuration files."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from codetr.errors import UserError


def conf_folder() -> Path:
    """The folder of all options: inside of the installed package, or beside it in a clone. Raises
    UserError if neither has a train.yaml.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(
        f"{package}: has no conf folder inside or beside it: install codetr again, from its wheel "
        "or with pip install --editable in a clone"
    )


def options_given(hydra: DictConfig) -> list[str]:
    """The ``--config-name`` and ``--config-dir`` of a command, from its Hydra configuration."""
    sources = hydra.runtime.config_sources if "runtime" in hydra else []
    folders = [f"--config-dir={s.path}" for s in sources if s.provider == "command-line"]
    return [f"--config-name={hydra.job.config_name}", *folders]


def about(command: str) -> str:
    """The leading comment of a command's file in conf/, for its ``--help``."""
    file = conf_folder() / f"{command}.yaml"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    comment = takewhile(lambda line: line.startswith("#"), lines)
    return "\n".join(line.lstrip("# ") for line in comment) or command


OmegaConf.register_new_resolver("codetr.about", about, replace=True)
