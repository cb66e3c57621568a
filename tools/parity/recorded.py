"""A folder of numbers that a run of the official code left behind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr.errors import UserError
from tools.parity.rules_masks import make_tensor
from tools.parity.table import EXACT, Row, Tolerance, compare, compare_bits

INFO, ARRAYS, STRIDES, KEYS, LOSSES = (
    "info.json",
    "io.npz",
    "stats.json",
    "keys.json",
    "losses.json",
)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What one folder says.

    ``info`` names the official configuration and the inputs; ``entries`` the official state dict
    as (name, shape); ``arrays`` the recorded tensors, of which each keeps every ``strides``-th
    value of its flattened whole, or all of it as bits in bytes where it is among the ``packed``
    ones, with the length of the last axis; ``losses`` is empty where the run did not train.
    """

    folder: Path
    info: dict[str, Any]
    entries: tuple[tuple[str, tuple[int, ...]], ...]
    arrays: dict[str, np.ndarray[Any, Any]]
    strides: dict[str, int]
    packed: dict[str, int]
    losses: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Recorded:
        """Read ``folder``. Raises UserError if a file is missing or is not of the known form."""
        for name in (INFO, ARRAYS, KEYS):
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder} has no {name}: give a folder of recorded numbers, such as "
                    "tests/golden/co_deformable_detr_r50_single"
                )
        with np.load(folder / ARRAYS) as stored:
            arrays = {name: stored[name] for name in stored.files}
        stats = _json(folder / STRIDES)
        return cls(
            folder=folder,
            info=_json(folder / INFO),
            entries=tuple(
                (key, tuple(shape)) for key, shape, *_ in _json(folder / KEYS)["entries"]
            ),
            arrays=arrays,
            strides={name: entry.get("stride", 1) for name, entry in stats.items()},
            packed={
                name: entry["shape"][-1]
                for name, entry in stats.items()
                if "packed" in entry.get("dtype", "")
            },
            losses=_json(folder / LOSSES),
        )

    @property
    def experiment(self) -> str:
        """Our experiment of the official configuration."""
        return Path(self.info["config"]).stem

    @property
    def num_classes(self) -> int:
        """Rows of the query head's last classifier."""
        sizes = [
            shape[0]
            for key, shape in self.entries
            if key.startswith("query_head.cls_branches.") and key.endswith(".bias")
        ]
        if not sizes:
            raise UserError(f"{self.folder / KEYS} has no query_head.cls_branches.*.bias")
        return sizes[0]

    def state(self) -> dict[str, Tensor]:
        """The official state dict, made by rule; without the constants that a model makes."""
        made = ((key, make_tensor(key, shape)) for key, shape in self.entries)
        return {key: torch.from_numpy(np.asarray(v)) for key, v in made if v is not None}

    def row(self, name: str, ours: Any, tolerance: Tolerance = EXACT) -> Row:
        """Compare our whole tensor with what is kept of the recorded one."""
        value = ours.detach().cpu().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
        if name in self.packed:
            stored = np.unpackbits(self.arrays[name], axis=-1, count=self.packed[name])
            return compare_bits(name, value, stored, int(tolerance.absolute))
        kept = value.reshape(-1)[:: self.strides.get(name, 1)]
        return compare(name, kept, self.arrays[name].reshape(-1), tolerance)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
