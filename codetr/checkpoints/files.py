"""Our own checkpoint files: what is in them besides weights, writing and reading them.

A ``.ckpt`` (Lightning's format, plain types only, so that it loads with ``weights_only=True``)
continues training. A ``.safetensors`` holds the deployable detector alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from codetr.classes import ClassList
from codetr.errors import UserError

DETECTOR = "detector."
"""Prefix of the detector's parameters in a .ckpt."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a model needs to be used again: its classes, the preprocessing (plain values), and the
    resolved configuration of its run.
    """

    KEY: ClassVar[str] = "codetr"
    """Where a .ckpt and a .safetensors' metadata keep it."""

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
        """The inverse of ``as_dict``. Raises UserError where something is missing."""
        try:
            classes = ClassList(
                names=tuple(content["class_names"]), category_ids=tuple(content["category_ids"])
            )
            return cls(
                classes=classes,
                preprocessing=content["preprocessing"],
                config=content["config"],
            )
        except KeyError as error:
            raise UserError(
                f"{source}: has no {error} beside its weights: give a file written by this "
                "program's training"
            ) from error


@dataclass(frozen=True, kw_only=True)
class DetectorFile:
    """The detector's ``weights`` (the averaged ones if the run averaged) and its ``record``."""

    weights: dict[str, Tensor]
    record: RunRecord


def read_detector_file(path: str | Path) -> DetectorFile:
    """Read a ``.ckpt`` or ``.safetensors`` that training wrote, onto the CPU.

    Raises UserError for a missing, broken or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file: give a .ckpt or .safetensors of a run")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".ckpt":
        return _read_ckpt(path)
    raise UserError(f"{path}: unknown ending '{path.suffix}': give a .ckpt or .safetensors file")


def _read_safetensors(path: Path) -> DetectorFile:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}): export it anew"
        ) from error
    if RunRecord.KEY not in metadata:
        raise UserError(
            f"{path}: holds weights but no class list: give a file written by this program's "
            "training"
        )
    content = json.loads(metadata[RunRecord.KEY])
    return DetectorFile(weights=weights, record=RunRecord.from_dict(content, path))


def _read_ckpt(path: Path) -> DetectorFile:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises all kinds of errors on foreign bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: not a readable checkpoint ({reason}): it may be cut off; use another one"
        ) from error
    if not isinstance(content, dict) or not {"state_dict", RunRecord.KEY} <= content.keys():
        raise UserError(
            f"{path}: not a checkpoint of this program: give a run's best.ckpt or last.ckpt"
        )
    weights = {
        name.removeprefix(DETECTOR): value
        for name, value in content["state_dict"].items()
        if name.startswith(DETECTOR)
    }
    record = RunRecord.from_dict(content[RunRecord.KEY], path)
    return DetectorFile(weights=weights, record=record)


def write_detector_file(path: str | Path, content: DetectorFile) -> None:
    """Write the deployable detector as ``.safetensors``, its record as JSON in the metadata."""
    tensors = {
        name: value.detach().cpu().contiguous().clone() for name, value in content.weights.items()
    }
    save_file(tensors, path, metadata={RunRecord.KEY: json.dumps(content.record.as_dict())})


def export_detector(checkpoint: str | Path, target: str | Path) -> None:
    """Write the detector inside a ``.ckpt`` as ``.safetensors``."""
    write_detector_file(target, read_detector_file(checkpoint))


def load_detector_weights(path: str | Path, detector: nn.Module, classes: ClassList) -> RunRecord:
    """Load a run's weights into ``detector``, which was built for ``classes``.

    Raises UserError where the class lists differ, or where the weights do not fit the detector
    exactly.
    """
    content = read_detector_file(path)
    theirs = content.record.classes
    if theirs != classes:
        raise UserError(
            f"{path}: was trained on {len(theirs)} classes ({_short(theirs.names)}; ids "
            f"{_short(theirs.category_ids)}) but the data has {len(classes)} "
            f"({_short(classes.names)}; ids {_short(classes.category_ids)}): use data with the "
            "same classes, or only backbone weights (model.backbone.weights=FILE)"
        )
    problems = _misfits(content.weights, detector.state_dict())
    if problems:
        raise UserError(
            f"{path}: does not fit the model: {'; '.join(problems)}. Build the model with the "
            "configuration in the checkpoint"
        )
    detector.load_state_dict(content.weights)
    return content.record


def _misfits(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """One phrase per kind of difference between a file's weights and a model's."""
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(state[name].shape)}"
        for name in weights
        if name in state and weights[name].shape != state[name].shape
    ]
    kinds = {
        "missing": [name for name in state if name not in weights],
        "unknown": [name for name in weights if name not in state],
        "other shape": shapes,
    }
    return [f"{len(names)} {kind} ({_short(names)})" for kind, names in kinds.items() if names]


def _short(values: Any, limit: int = 3) -> str:
    values = list(values)
    text = ", ".join(str(v) for v in values[:limit])
    return text + (", ..." if len(values) > limit else "")
