"""Folders of models for the Hugging Face Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from codetr.checkpoints.files import RunRecord
from codetr.errors import UserError
from codetr.models.backbones.hub_access import hub_or_cache, reason_of
from codetr.writing import write_text

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

USED = ("model", "scheme", "aux_heads", "evaluation", "augmentation", "data", "num_classes")
"""The parts of a configuration that prediction, evaluation and fine-tuning use."""
FILES: dict[str, Any] = {"root": None, "weights": None, "teachers": []}
"""Keys at any depth whose values are files of the author, and their replacements: the folder of the
data, a backbone's weights, boxes of teachers.
"""


def published(record: RunRecord) -> RunRecord:
    """The record for publication: with the parts needed to use the model, without the author's
    files.
    """
    config = {key: without_files(record.config[key]) for key in USED if key in record.config}
    return replace(record, config=config, preprocessing=without_files(dict(record.preprocessing)))


def without_files(value: Any) -> Any:
    """A value of a configuration with the replacements of ``FILES`` and without absolute paths, for
    which the classes have defaults.
    """
    if isinstance(value, Mapping):
        return {
            key: FILES[key] if key in FILES else without_files(part)
            for key, part in value.items()
            if key in FILES or not is_absolute(part)
        }
    if isinstance(value, list | tuple):
        return [without_files(part) for part in value if not is_absolute(part)]
    return value


def is_absolute(value: Any) -> bool:
    """Whether it is a string with an absolute path, or one in a home folder."""
    return isinstance(value, str) and (
        value.startswith("~") or any(p(value).is_absolute() for p in (Path, PureWindowsPath))
    )


def write_config(path: Path, record: RunRecord) -> None:
    """Write config.json for readers of the folder; loading only needs the metadata of the
    weights.
    """
    content = {
        "library_name": "codetr",
        "id2label": dict(enumerate(record.classes.names)),
        "preprocessing": dict(record.preprocessing),
    }
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False))


def fetch(model: str, local_files_only: bool = False, **options: Any) -> Path:
    """The path of the weights in a local folder, or of a model on the Hub, where ``options`` are
    those of ``hf_hub_download``.

    Raises UserError if there are none, or the Hub is not available.
    """
    if os.path.isdir(model):
        path = Path(model) / WEIGHTS_FILE
        if not path.is_file():
            raise UserError(f"{model}: has no {WEIGHTS_FILE}: give a folder of save_pretrained")
        return path
    with hub_or_cache() as offline:
        try:
            return Path(
                hf_hub_download(
                    repo_id=model,
                    filename=WEIGHTS_FILE,
                    local_files_only=local_files_only or offline,
                    **options,
                )
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"{model}: no such local folder, and not available from the Hub "
                f"({reason_of(error, offline)}): give a folder of save_pretrained, or USER/MODEL "
                "with access to the network"
            ) from None
