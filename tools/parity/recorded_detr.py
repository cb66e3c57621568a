"""A folder of numbers that official code of DETR's family left behind: see ``rules_detr``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr.errors import UserError
from codetr.structures import Batch, ImageInfo, Images, Targets
from tools.parity.recorded import ARRAYS, INFO, KEYS, LOSSES
from tools.parity.rules_detr import Inputs, make_inputs, make_tensor
from tools.parity.table import EXACT, Row, Tolerance, compare


@dataclass(frozen=True, kw_only=True)
class RecordedDetr:
    """What one folder says.

    ``info`` names our experiment; ``keys`` the official state dict by short names, the inputs and
    the strides of arrays of which only every n-th value is kept; ``losses`` is empty where the run
    did not train.
    """

    folder: Path
    info: dict[str, Any]
    keys: dict[str, Any]
    arrays: dict[str, np.ndarray[Any, Any]]
    losses: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> RecordedDetr:
        """Read ``folder``. Raises UserError if a file is missing or says too little."""
        content = {name: _json(folder / name) for name in (INFO, KEYS, LOSSES)}
        for name, needed in ((INFO, ("experiment",)), (KEYS, ("keys", "seed", "sizes"))):
            missing = [key for key in needed if key not in content[name]]
            if missing:
                raise UserError(
                    f"{folder / name} has no {missing[0]}: give a folder of recorded numbers"
                )
        if not (folder / ARRAYS).is_file():
            raise UserError(f"{folder} has no {ARRAYS}: give a folder of recorded numbers")
        with np.load(folder / ARRAYS) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return cls(
            folder=folder,
            info=content[INFO],
            keys=content[KEYS],
            arrays=arrays,
            losses=content[LOSSES],
        )

    @property
    def experiment(self) -> str:
        """Our experiment."""
        return str(self.info["experiment"])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The official state dict, each tensor once."""
        return {key: tuple(shape) for key, shape in self.keys["keys"]}

    def short(self, name: str) -> str:
        """The name under which a tensor's shape is kept, of one that may be another name for it."""
        for beginning, kept in self.keys.get("alias_keys", {}).items():
            if name.startswith(beginning):
                return str(kept) + name.removeprefix(beginning)
        return name

    @property
    def num_classes(self) -> int:
        """Of the labels, and rows of the class heads."""
        return int(self.keys.get("num_classes_for_labels", 91))

    def state(self) -> dict[str, Tensor]:
        """The official state dict by short names, made by rule."""
        overrides = self.info.get("weight_overrides") or self.keys.get("weight_overrides") or ()
        return {
            key: torch.from_numpy(make_tensor(key, shape, overrides))
            for key, shape in self.shapes.items()
        }

    def inputs(self) -> Inputs:
        """Images and boxes, made by rule."""
        keys = self.keys
        return make_inputs(keys["seed"], keys["sizes"], keys["num_gts"], self.num_classes)

    def row(
        self, name: str, ours: Any, tolerance: Tolerance = EXACT, where: Tensor | None = None
    ) -> Row:
        """Compare our whole tensor with what is kept of the recorded one, ``where`` (bool, of our
        shape) is True.
        """
        value, recorded = self._kept(name, ours), self.arrays[name]
        if where is not None and value.shape == recorded.shape:
            chosen = self._kept(name, where.expand(ours.shape))
            value, recorded = value[chosen], recorded[chosen]
        return compare(name, value, recorded, tolerance)

    def _kept(self, name: str, whole: Any) -> np.ndarray[Any, Any]:
        value = whole.detach().cpu().numpy() if isinstance(whole, Tensor) else np.asarray(whole)
        shape, stride = self.keys.get("subsampled", {}).get(name, (None, 1))
        if shape is None or list(value.shape) != list(shape):
            return value
        kept: np.ndarray[Any, Any] = value.reshape(-1)[::stride]
        return kept


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def input_values(inputs: Inputs) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """What is recorded of images and boxes, under its names."""
    flat = inputs.pixels.reshape(len(inputs.pixels), -1).astype(np.float64)
    yield "image_first", inputs.pixels[:, :, :2, :8]
    yield "image_mean_std", np.stack([flat.mean(1), flat.std(1)], axis=1)
    for b, (boxes, labels) in enumerate(zip(inputs.relative, inputs.labels, strict=True)):
        yield f"gt_boxes_cxcywh_{b}", boxes
        yield f"gt_labels_{b}", labels


def make_batch(
    inputs: Inputs,
    original_sizes: list[tuple[int, int]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """The recorded inputs. ``original_sizes`` (height, width) of the images' files; None: of the
    images as they are.
    """
    padding = torch.from_numpy(inputs.padding)
    sizes = torch.stack([(~padding[:, :, 0]).sum(1), (~padding[:, 0]).sum(1)], dim=1)
    shown = [(int(h), int(w)) for h, w in sizes]
    files = shown if original_sizes is None else original_sizes
    return Batch(
        images=Images(
            pixels=torch.from_numpy(inputs.pixels).to(dtype),
            padding=padding,
            sizes=sizes,
            padded_sizes=sizes,
        ),
        targets=tuple(
            Targets(
                boxes=torch.from_numpy(boxes).to(dtype),
                labels=torch.from_numpy(labels),
                weights=torch.ones(len(labels), dtype=dtype),
                size=size.to(dtype),
            )
            for boxes, labels, size in zip(
                inputs.relative, inputs.labels, sizes.flip(1), strict=True
            )
        ),
        infos=tuple(
            ImageInfo(image_id=b, original_size=file, scale=(w / file[1], h / file[0]))
            for b, (file, (h, w)) in enumerate(zip(files, shown, strict=True))
        ),
    )
