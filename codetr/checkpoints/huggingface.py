"""Models of the transformers library: folders with ``config.json`` and ``model.safetensors``.

Tensors are renamed to those of the official repository, which our rules then convert. No code from
a folder is run: weights are read from safetensors only, settings from JSON.
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
from codetr.checkpoints.official_file import OfficialFile, identified, read_tensors
from codetr.checkpoints.renaming import Rules, rename
from codetr.errors import UserError
from codetr.json_text import parse_json

HUGGINGFACE = "huggingface:"
"""Prefix of the name of such a folder."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_PART = re.compile(r"(.*)#(\d)")
_NUMBER = re.compile(r"[0-9]{1,9}")


def read_huggingface(folder: str | Path, cfg: DictConfig) -> OfficialFile:
    """Read a ``folder`` as the equivalent official file, for the model of ``cfg``.

    Raises UserError for a folder without a model, an unsupported model, and settings that differ
    from those of ``cfg``.
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
    return identified(path, dict(weights), names=_names(config))


def to_official(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """The state dict under official names. Keys that no rule matches are kept, to be reported."""
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
        raise UserError(f"{path} is no JSON object: give a folder of a model of transformers")
    return config


def _layout(path: Path, config: Mapping[str, Any]) -> Layout:
    """The layout for ``config``, read from ``path``. Raises UserError for an unsupported model."""
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
    raise UserError(f"{path}: models with {', '.join(given)} are not supported")


def _require_settings(
    path: Path, config: Mapping[str, Any], layout: Layout, cfg: DictConfig
) -> None:
    """Raise UserError if ``cfg`` has other settings than ``config``, read from ``path``. The
    message says which overrides to add.
    """
    wrong = [
        f"{key}={reprlib.repr(config[key])}"
        for key, value in layout.fixed.items()
        if config.get(key, value) != value
    ]
    if wrong:
        raise UserError(f"{path}: models with {', '.join(wrong)} are not supported")
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
                f"{path}: {setting.theirs} is {config[setting.theirs]}, but the same setting of "
                f"ours has to be {given[setting.ours]}: such models are not supported"
            )
        if _selected(cfg, setting) != value:
            other[setting.ours] = value
    if other:
        overrides = " ".join(f"{_key(cfg, k)}={_written(value)}" for k, value in other.items())
        raise UserError(f"{path}: has other settings than the model: add {overrides}")


def _is_setting(value: Any) -> bool:
    """Whether ``value`` is safe to show as part of a command."""
    return all(isinstance(v, int) for v in (value if isinstance(value, list) else [value]))


def _selected(cfg: DictConfig, setting: Setting) -> Any:
    value = OmegaConf.select(cfg, setting.ours, default=setting.absent)
    return list(value) if OmegaConf.is_list(value) else value


def _key(cfg: DictConfig, key: str) -> str:
    """``key`` as written in an override: with ``++`` if ``cfg`` does not have it."""
    absent = object()
    return f"++{key}" if OmegaConf.select(cfg, key, default=absent) is absent else key


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def _names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names in order; None if there are none, or only the library's placeholders."""
    table = config.get("id2label")
    if not isinstance(table, Mapping) or not all(_NUMBER.fullmatch(key) for key in table):
        return None
    names = tuple(str(table[key]) for key in sorted(table, key=int))
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
