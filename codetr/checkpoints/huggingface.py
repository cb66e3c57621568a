"""Folders of the transformers library: ``config.json`` and ``model.safetensors``, under its names.

They are renamed to those of the official repository, from where our rules know the way. Nothing in
a folder is run: weights are read from safetensors alone, settings from JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from codetr.checkpoints.official_file import OfficialFile, as_official, read_tensors
from codetr.checkpoints.renaming import Rules, rename
from codetr.errors import UserError
from codetr.json_text import parse_json

HUGGINGFACE = "huggingface:"
"""What stands before the name of such a folder."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_PART = re.compile(r"(.*)#(\d)")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """``rules`` from the library's names to the official ones; ``NAME#0``, ``NAME#1`` ... are parts
    that are joined along their rows. ``settings``: our keys, by those of config.json, that must
    have its values; ``fixed``: its values that there is no key for.
    """

    rules: Rules
    settings: Mapping[str, str]
    fixed: Mapping[str, Any]


_BLOCK = r"vit\.encoder\.layer\.(\d+)\."
_OURS = r"backbone.blocks.\1."
YOLOS = Layout(
    rules=(
        (r"vit\.embeddings\.cls_token", r"backbone.cls_token"),
        (r"vit\.embeddings\.detection_tokens", r"backbone.det_token"),
        (r"vit\.embeddings\.position_embeddings", r"backbone.pos_embed"),
        (
            r"vit\.encoder\.(?:interpolation\.)?mid_position_embeddings",
            r"backbone.mid_pos_embed",
        ),
        (r"vit\.embeddings\.patch_embeddings\.projection\.(.*)", r"backbone.patch_embed.proj.\1"),
        (_BLOCK + r"attention\.attention\.query\.(.*)", _OURS + r"attn.qkv.\2#0"),
        (_BLOCK + r"attention\.attention\.key\.(.*)", _OURS + r"attn.qkv.\2#1"),
        (_BLOCK + r"attention\.attention\.value\.(.*)", _OURS + r"attn.qkv.\2#2"),
        (_BLOCK + r"attention\.output\.dense\.(.*)", _OURS + r"attn.proj.\2"),
        (_BLOCK + r"intermediate\.dense\.(.*)", _OURS + r"mlp.fc1.\2"),
        (_BLOCK + r"output\.dense\.(.*)", _OURS + r"mlp.fc2.\2"),
        (_BLOCK + r"layernorm_before\.(.*)", _OURS + r"norm1.\2"),
        (_BLOCK + r"layernorm_after\.(.*)", _OURS + r"norm2.\2"),
        (r"vit\.layernorm\.(.*)", r"backbone.norm.\1"),
        (r"class_labels_classifier\.(.*)", r"class_embed.\1"),
        (r"bbox_predictor\.(.*)", r"bbox_embed.\1"),
    ),
    settings={
        "hidden_size": "model.dim",
        "num_hidden_layers": "model.backbone.depth",
        "num_attention_heads": "model.heads",
        "intermediate_size": "model.hidden",
        "num_detection_tokens": "model.num_queries",
        "image_size": "model.backbone.table",
        "use_mid_position_embeddings": "model.backbone.middle",
    },
    fixed={"patch_size": 16, "num_channels": 3, "qkv_bias": True, "hidden_act": "gelu"},
)

LAYOUTS: Mapping[str, Layout] = {"yolos": YOLOS}
"""By ``model_type`` in config.json."""


def read_huggingface(folder: str | Path, cfg: DictConfig) -> OfficialFile:
    """Read a ``folder`` as what it would be officially, for the model of ``cfg``.

    Raises UserError for a folder that is none, a model that we do not know, and settings that are
    not those of ``cfg``.
    """
    folder = Path(folder)
    config = _config(folder)
    layout = LAYOUTS.get(str(config.get("model_type")))
    if layout is None:
        raise UserError(
            f"{folder / CONFIG}: model_type is {config.get('model_type')!r}: give a folder of one "
            f"of {', '.join(LAYOUTS)}"
        )
    _require_settings(folder, config, layout, cfg)
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(
            f"{folder} has no {WEIGHTS}: save the model with transformers' save_pretrained, which "
            "writes one (other files of weights could run code)"
        )
    weights = to_official(read_tensors(path), layout.rules)
    return as_official(path, weights, names=_names(config))


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


def _require_settings(
    folder: Path, config: Mapping[str, Any], layout: Layout, cfg: DictConfig
) -> None:
    """Raises UserError, with what to add on the command line, where ``cfg`` has other settings."""
    wrong = [
        f"{key}={config[key]!r}"
        for key, value in layout.fixed.items()
        if config.get(key, value) != value
    ]
    if wrong:
        raise UserError(f"{folder / CONFIG}: {', '.join(wrong)} is a model that we do not have")
    given = {ours: config[key] for key, ours in layout.settings.items() if key in config}
    other = {ours: value for ours, value in given.items() if _selected(cfg, ours) != value}
    if other:
        overrides = " ".join(f"{ours}={_written(value)}" for ours, value in other.items())
        raise UserError(f"{folder / CONFIG}: has other settings than the model: add {overrides}")


def _selected(cfg: DictConfig, key: str) -> Any:
    value = OmegaConf.select(cfg, key)
    return list(value) if OmegaConf.is_list(value) else value


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def _names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names in their order; None where they are the library's placeholders, or none."""
    table = config.get("id2label")
    if not isinstance(table, Mapping) or not all(str(key).isdecimal() for key in table):
        return None
    names = tuple(str(table[key]) for key in sorted(table, key=int))
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
