"""The resolved values of conf/, in few words: ``python tests/resolved_values.py`` records them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from codetr.checkpoints.experiment import build_empty
from codetr.conf_folder import conf_folder
from codetr.moved_keys import present_key

RECORD = Path(__file__).parent / "golden" / "resolved_values.json"
FIXED = ("name=x", "paths.run_dir=.", "num_classes=80")
COMMANDS = ("train", "eval", "export", "predict", "teacher_boxes")
STATE = "state_dict"
SECTIONS = (
    *("model", "supervision", "scheme", "aux_heads", "augmentation"),
    *("evaluation", "optimizer", "schedule", "trainer"),
)
"""What makes a recipe. The others (data, callbacks ...) say where and how it runs."""
NEW = ("supervision.matcher", "augmentation.mix.masks", "evaluation.masks")
"""Keys that did not exist under another name: what ``scheme`` resolves to has their values."""


def choices() -> Iterator[str]:
    """What is recorded: each command's defaults, each model, each experiment."""
    yield from COMMANDS
    for group in ("model", "experiment"):
        for path in sorted((conf_folder() / group).glob("*.yaml")):
            yield f"train {group}={path.stem}"


def composed(choice: str) -> DictConfig:
    """The configuration of ``COMMAND [GROUP=OPTION]``."""
    command, *overrides = choice.split()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose(command, [*overrides, *FIXED])


def values(choice: str) -> dict[str, str]:
    """JSON of each value by its full name; an empty list or section is a value. Of the commands
    beside train, as written: what they refer to comes with a checkpoint.
    """
    resolve = choice.startswith("train")
    return dict(_values(OmegaConf.to_container(composed(choice), resolve=resolve), ""))


def _values(node: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for key, child in node.items():
            yield from _values(child, f"{name}.{key}".lstrip("."))
    else:
        yield present_key(name), json.dumps(node, sort_keys=True)


def summary(values: dict[str, str]) -> dict[str, str]:
    """A hash of the values of each section."""
    sections: dict[str, list[str]] = {}
    for key, value in sorted(values.items()):
        section = key.partition(".")[0]
        if section in SECTIONS and not key.startswith(NEW):
            sections.setdefault(section, []).append(f"{key}={value}")
    return {name: digest("\n".join(lines)) for name, lines in sections.items()}


def digest(text: str) -> str:
    """Twelve digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def parameters(cfg: DictConfig) -> str:
    """A hash of the names and shapes of all tensors of a detector and of its schemes."""
    state = build_empty(cfg).state_dict()
    return digest("\n".join(f"{name} {tuple(state[name].shape)}" for name in sorted(state)))


def record() -> dict[str, dict[str, str]]:
    """The sections' hashes, and ``state_dict``'s, by choice."""
    found = {}
    for choice in choices():
        found[choice] = summary(values(choice))
        if choice.startswith("train"):
            found[choice][STATE] = parameters(composed(choice))
    return found


if __name__ == "__main__":
    RECORD.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
