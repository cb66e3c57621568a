"""Folders of the transformers library: ``config.json`` and ``model.safetensors``, under its names.

They are renamed to those of the official repository, from where our rules know the way. Nothing in
a folder is run: weights are read from safetensors alone, settings from JSON.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from codetr.checkpoints.huggingface_layouts import LAYOUTS, Layout, Setting
from codetr.checkpoints.official_file import OfficialFile, as_official, read_tensors
from codetr.checkpoints.renaming import Rules, rename
from codetr.errors import UserError
from codetr.json_text import parse_json

HUGGINGFACE = "huggingface:"
"""What stands before the name of such a folder."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_PART = re.compile(r"(.*)#(\d)")
_NUMBER = re.compile(r"[0-9]{1,9}")


def read_huggingface(folder: str | Path, cfg: DictConfig) -> OfficialFile:
    """Read a ``folder`` as what it would be officially, for the model of ``cfg``.

    Raises UserError for a folder that is none, a model that we do not know, and settings that are
    not those of ``cfg``.
    """
    folder = Path(folder)
    config = _config(folder)
    layout = _layout(folder / CONFIG, config)
    _require_settings(folder / CONFIG, config, layout, cfg)
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(
            f"{folder} has no {WEIGHTS}: save the model with transformers' save_pretrained, which "
            "writes one (other files of weights could run code)"
        )
    weights = layout.complete(to_official(read_tensors(path), layout.rules), path)
    return as_official(path, dict(weights), names=_names(config))


def to_official(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Under official names; keys that no rule knows stay, to be told."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        name = rename(key, rules) or key
        part = _PART.fullmatch(name)
        if part:
            parts.setdefault(part[1], {})[int(part[2])] = value
        else:
            found[name] = value
    joined = {n: torch.cat([own[i] for i in sorted(own)]) for n, own in parts.items()}
    return found | joined


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} has no {CONFIG}: give a folder of a model of transformers")
    config = parse_json(path.read_bytes(), str(path))
    if not isinstance(config, Mapping):
        raise UserError(f"{path} is no table of settings: give a folder of a model of transformers")
    return config


def _layout(path: Path, config: Mapping[str, Any]) -> Layout:
    """Raises UserError where ``config``, read from ``path``, is of no model that we know."""
    kind = str(config.get("model_type"))
    if kind not in LAYOUTS:
        raise UserError(
            f"{path}: model_type is {reprlib.repr(config.get('model_type'))}: give a folder of one "
            f"of {', '.join(LAYOUTS)}"
        )
    for layout in LAYOUTS[kind]:
        if all(config.get(key, False) is value for key, value in layout.flags.items()):
            return layout
    given = (f"{k}={reprlib.repr(config.get(k, False))}" for k in LAYOUTS[kind][0].flags)
    raise UserError(f"{path}: {', '.join(given)} is a model that we do not have")


def _require_settings(
    path: Path, config: Mapping[str, Any], layout: Layout, cfg: DictConfig
) -> None:
    """Raises UserError, with what to add on the command line, where ``cfg`` has other settings than
    ``config``, read from ``path``.
    """
    wrong = [
        f"{key}={reprlib.repr(config[key])}"
        for key, value in layout.fixed.items()
        if config.get(key, value) != value
    ]
    if wrong:
        raise UserError(f"{path}: {', '.join(wrong)} is a model that we do not have")
    if any(layout.flags[s.theirs] != _selected(cfg, s) for s in layout.kind):
        raise UserError(f"{path}: is another model: add model={layout.page}")
    settings = [setting for setting in layout.settings if setting.theirs in config]
    for key in dict.fromkeys(setting.theirs for setting in settings):
        if not _is_setting(config[key]):
            raise UserError(
                f"{path}: {key} is {reprlib.repr(config[key])}: give a whole number, true, false "
                "or a list of whole numbers"
            )
    other: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for setting in settings:
        value = setting.read(config[setting.theirs])
        if given.setdefault(setting.ours, value) != value:
            raise UserError(
                f"{path}: {setting.theirs} is {config[setting.theirs]}, but ours has "
                f"{given[setting.ours]} there, too: it is a model that we do not have"
            )
        if _selected(cfg, setting) != value:
            other[setting.ours] = value
    if other:
        overrides = " ".join(f"{_key(cfg, k)}={_written(value)}" for k, value in other.items())
        raise UserError(f"{path}: has other settings than the model: add {overrides}")


def _is_setting(value: Any) -> bool:
    """What is safe to show as part of a command."""
    return all(isinstance(v, int) for v in (value if isinstance(value, list) else [value]))


def _selected(cfg: DictConfig, setting: Setting) -> Any:
    value = OmegaConf.select(cfg, setting.ours, default=setting.absent)
    return list(value) if OmegaConf.is_list(value) else value


def _key(cfg: DictConfig, key: str) -> str:
    """``key`` as it is overridden: with ``++`` where ``cfg`` does not have it."""
    absent = object()
    return f"++{key}" if OmegaConf.select(cfg, key, default=absent) is absent else key


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def _names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names in their order; None where they are the library's placeholders, or none."""
    table = config.get("id2label")
    if not isinstance(table, Mapping) or not all(_NUMBER.fullmatch(key) for key in table):
        return None
    names = tuple(str(table[key]) for key in sorted(table, key=int))
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
