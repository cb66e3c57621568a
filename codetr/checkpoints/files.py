"""Reading and writing our own checkpoint files, and the record that they contain.

A ``.ckpt`` is for resuming training (Lightning's format, with plain types only, so that it loads
with ``weights_only=True``). A ``.safetensors`` contains the detector under its own parameter names.
A run writes the deployable detector alone; a converted official checkpoint also has the weights of
training schemes, under ``schemes.``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from codetr.checkpoints.aliases import current_names
from codetr.checkpoints.plain import plain, plain_text
from codetr.classes import ClassList
from codetr.errors import UserError, first_line
from codetr.torch_files import (
    MOST_TEXT,
    Inflated,
    require_archive,
    require_header,
    require_held,
)
from codetr.writing import replacing

DETECTOR = "detector."
"""Prefix of the detector's parameters in a .ckpt."""
SCHEMES = "schemes."
"""Prefix of the training schemes' parameters."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The metadata that a model needs to be used: its classes, its preprocessing (plain values),
    and the resolved configuration of its run.
    """

    KEY: ClassVar[str] = "codetr"
    """Key of the record in a .ckpt and in the metadata of a .safetensors."""

    classes: ClassList
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return {
            "class_names": list(self.classes.names),
            "category_ids": list(self.classes.category_ids),
            "preprocessing": dict(self.preprocessing),
            "config": dict(self.config),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: Path) -> RunRecord:
        """The inverse of ``as_dict``, as plain values and with the present names of renamed
        classes. Raises UserError for missing entries, wrong types, and interpolations (see
        ``plain``).
        """
        name = str(source)
        content = plain_text(content, name, "record")
        try:
            record = cls(
                classes=ClassList(
                    names=tuple(content["class_names"]),
                    category_ids=tuple(content["category_ids"]),
                ),
                preprocessing=current_names(plain(content["preprocessing"], name, "preprocessing")),
                config=current_names(plain(content["config"], name, "config")),
            )
        except KeyError as error:
            raise UserError(
                f"{source}: has no {error} in its metadata: give a file written by this program's "
                "training"
            ) from error
        except (TypeError, AttributeError):
            raise _damaged(name, "record") from None
        record._require_kinds(name)
        return record

    def _require_kinds(self, source: str) -> None:
        ids = self.classes.category_ids
        kinds = {
            "class_names": all(type(name) is str for name in self.classes.names),
            "category_ids": all(type(i) is int and abs(i) < 2**63 for i in ids),
            "preprocessing": isinstance(self.preprocessing, dict),
            "config": isinstance(self.config, dict),
        }
        for name, right in kinds.items():
            if not right:
                raise _damaged(source, name)

    def require_preprocessing(self, source: str) -> None:
        """Raise UserError if the preprocessing of images is missing or damaged."""
        given = self.preprocessing
        colours = [given.get(key) for key in ("mean", "std")]
        divisor = given.get("size_divisor")
        triples = all(isinstance(c, list | tuple) and len(c) == 3 for c in colours)
        if not triples or not all(type(x) in (int, float) for c in colours for x in c or ()):
            raise _damaged(source, "preprocessing.mean or .std")
        if type(divisor) is not int or divisor < 1:
            raise _damaged(source, "preprocessing.size_divisor")
        if not isinstance(given.get("resize"), dict):
            raise _damaged(source, "preprocessing.resize")

    def part(self, source: str, *keys: str) -> dict[str, Any]:
        """The part of the configuration at ``keys``. Raises UserError if there is none."""
        found: Any = self.config
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise UserError(
                f"{source}: has no configuration of its {'.'.join(keys)}: give a file of a run or "
                "of codetr-convert"
            )
        return found


def _damaged(source: str, what: str) -> UserError:
    return UserError(
        f"{source}: its metadata is damaged ({what}): export it again, or download the file again"
    )


@dataclass(frozen=True, kw_only=True)
class DetectorFile:
    """The detector's ``weights`` (the moving average if the run had one), those of the training
    ``schemes`` if the file has them, and the ``record``.
    """

    weights: dict[str, Tensor]
    record: RunRecord
    schemes: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], record: RunRecord) -> DetectorFile:
        """From a state dict whose names begin with ``detector.`` and ``schemes.``."""
        return cls(weights=_under(state, DETECTOR), schemes=_under(state, SCHEMES), record=record)

    @property
    def state(self) -> dict[str, Tensor]:
        """All weights: the detector's as ``detector.*``, the schemes' as ``schemes.*``."""
        return {DETECTOR + name: value for name, value in self.weights.items()} | {
            SCHEMES + name: value for name, value in self.schemes.items()
        }


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, which is removed."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def read_detector_file(path: str | Path) -> DetectorFile:
    """Read a ``.ckpt`` or ``.safetensors`` that training wrote, onto the CPU.

    Raises UserError for a missing, broken or foreign file.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such checkpoint file: give a .ckpt or .safetensors of a run")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".ckpt":
        return _read_ckpt(path)
    raise UserError(f"{path}: unknown suffix '{path.suffix}': give a .ckpt or .safetensors file")


def _read_safetensors(path: Path) -> DetectorFile:
    require_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            about = _parsed(metadata, path)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}): export it again"
        ) from error
    record = RunRecord.from_dict(about, path)
    schemes = _under(weights, SCHEMES)
    own = {name: value for name, value in weights.items() if not name.startswith(SCHEMES)}
    return DetectorFile(weights=own, schemes=schemes, record=record)


def _parsed(metadata: Mapping[str, str], path: Path) -> Any:
    """The record in a file's metadata as JSON values."""
    text = metadata.get(RunRecord.KEY)
    if text is None:
        raise UserError(
            f"{path}: holds weights but no class list: give a file written by this program's "
            "training"
        )
    if len(text) > MOST_TEXT:
        raise _damaged(str(path), f"record of {len(text)} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: its class list is not JSON ({str(error)[:200]}): export it again, or "
            "download the file again"
        ) from None


def _read_ckpt(path: Path) -> DetectorFile:
    try:
        require_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises any exception for foreign bytes
        reason = first_line(error)
        raise UserError(
            f"{path}: not a readable checkpoint ({reason}): it may be truncated; use another one"
        ) from error
    if not isinstance(content, dict) or not {"state_dict", RunRecord.KEY} <= content.keys():
        raise UserError(
            f"{path}: not a checkpoint of this program: give a run's best.ckpt or last.ckpt"
        )
    record = RunRecord.from_dict(content[RunRecord.KEY], path)
    state = content["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _damaged(str(path), "state_dict")
    try:
        require_held(state.items())
    except Inflated as error:
        raise _damaged(str(path), str(error)) from None
    return DetectorFile.from_state(state, record)


def write_detector_file(path: str | Path, content: DetectorFile) -> None:
    """Write a ``.safetensors`` file with the record as JSON in the metadata."""
    named = content.weights | {SCHEMES + name: value for name, value in content.schemes.items()}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in named.items()}
    metadata = {RunRecord.KEY: json.dumps(content.record.as_dict())}
    with replacing(Path(path)) as file:
        file.write(save(tensors, metadata))


def export_detector(checkpoint: str | Path, target: str | Path) -> None:
    """Write the detector of a ``.ckpt`` as ``.safetensors``, without the schemes."""
    write_detector_file(target, replace(read_detector_file(checkpoint), schemes={}))
