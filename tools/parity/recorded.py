"""Read a folder of numbers recorded from official code, in either of two layouts.

Records of Co-DETR have the state dict under ``entries`` in keys.json, strides of arrays in
stats.json, and inputs in info.json (see ``rules``). Those of DETR's family have all of that in
keys.json, with the state dict under ``keys`` (see ``rules_detr``).
"""

from __future__ import annotations

import json
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr.errors import UserError
from tools.parity import rules, rules_detr
from tools.parity.inputs import Inputs, input_values
from tools.parity.rules import Array
from tools.parity.table import EXACT, Row, Tolerance, Tolerances, compare, compare_bits

INFO, ARRAYS, STRIDES, KEYS, LOSSES = (
    "info.json",
    "io.npz",
    "stats.json",
    "keys.json",
    "losses.json",
)
ENTRIES = "entries"
WITH_SCORES = re.compile(r"_boxes_scores$|\d_proposals$")
INPUTS = Tolerances(special={"mean_std": Tolerance(relative=1e-6)})


@dataclass(frozen=True, kw_only=True)
class RecordedStep:
    """One official training step. ``losses`` by official name are raw and come with ``weights``, or
    are weighted already (``weights`` is None). Gradient ``norms`` are by official parameter name;
    ``norm`` is that of all gradients together, None if it is not recorded.
    """

    losses: Mapping[str, float]
    weights: Mapping[str, float] | None = None
    total: float
    norms: Mapping[str, float]
    norm: float | None


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The contents of one folder.

    ``info`` names the experiment; ``keys`` holds the official state dict. ``thinned`` gives the
    whole shape (None: any) of ``arrays`` and n, where only every n-th value is kept; ``packed``
    ones are bits in bytes, with the length of the last axis. ``losses`` is empty if the run did not
    train.
    """

    folder: Path
    info: dict[str, Any]
    keys: dict[str, Any]
    arrays: dict[str, Array]
    losses: dict[str, Any]
    thinned: dict[str, tuple[tuple[int, ...] | None, int]] = field(default_factory=dict)
    packed: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Recorded:
        """Read ``folder``. Raises UserError if a file or a key is missing."""
        for name in (INFO, ARRAYS, KEYS):
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder} has no {name}: give a folder of recorded numbers, such as "
                    "tests/golden/co_deformable_detr_r50_single"
                )
        info, keys = read_json(folder / INFO), read_json(folder / KEYS)
        arrays = read_arrays(folder / ARRAYS)
        thinned: dict[str, tuple[tuple[int, ...] | None, int]]
        packed = {}
        if ENTRIES in keys:
            stats = read_json(folder / STRIDES)
            thinned = {name: (None, stats.get(name, {}).get("stride", 1)) for name in arrays}
            packed = {
                name: entry["shape"][-1]
                for name, entry in stats.items()
                if "packed" in entry.get("dtype", "")
            }
        else:
            _require(folder / INFO, info, "experiment")
            _require(folder / KEYS, keys, "keys", "seed", "sizes")
            kept = keys.get("subsampled", {})
            thinned = {name: (tuple(shape), stride) for name, (shape, stride) in kept.items()}
        return cls(
            folder=folder,
            info=info,
            keys=keys,
            arrays=arrays,
            losses=read_json(folder / LOSSES),
            thinned=thinned,
            packed=packed,
        )

    @property
    def of_co_detr(self) -> bool:
        """Whether the folder has the layout and follows the rules of Co-DETR."""
        return ENTRIES in self.keys

    @property
    def experiment(self) -> str:
        """Our experiment; records of Co-DETR give the official configuration's name."""
        return Path(self.info["config"]).stem if self.of_co_detr else str(self.info["experiment"])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the official state dict, each tensor once."""
        entries = self.keys[ENTRIES if self.of_co_detr else "keys"]
        return {key: tuple(shape) for key, shape, *_ in entries}

    def short(self, name: str) -> str:
        """The name in the state dict of a parameter that may have aliases."""
        for beginning, kept in self.keys.get("alias_keys", {}).items():
            if name.startswith(beginning):
                return str(kept) + name.removeprefix(beginning)
        return name

    @property
    def num_classes(self) -> int:
        """Number of classes of the labels: rows of the query head's last classifier, or as
        recorded.
        """
        if not self.of_co_detr:
            return int(self.keys.get("num_classes_for_labels", 91))
        for key, shape in self.shapes.items():
            if key.startswith("query_head.cls_branches.") and key.endswith(".bias"):
                return shape[0]
        raise UserError(f"{self.folder / KEYS} has no query_head.cls_branches.*.bias")

    def state(self) -> dict[str, Tensor]:
        """The official state dict, generated by rule; without constants that a model computes
        itself.
        """
        replaced = self.info.get("weight_overrides") or self.keys.get("weight_overrides") or ()
        extra = self.info.get("weight_rule_overrides", {})
        biases = [(part, (mean, amplitude)) for part, mean, amplitude in extra.get("bias", ())]
        tables, kept = (biases, extra.get("gain", ())), tuple(extra.get("keep", ()))
        state = {}
        for key, shape in self.shapes.items():
            if self.of_co_detr:
                made = rules.make_tensor(key, shape, *tables)
            else:
                made = rules_detr.make_tensor(key, shape, replaced)
            if made is not None and not key.endswith(kept):
                state[key] = torch.from_numpy(made)
        return state

    def inputs(self) -> Inputs:
        """Images, boxes, and masks if the detector has a mask head, generated by rule. For a head
        alone, which reads no images, they are one pixel in size.
        """
        info, keys = self.info, self.keys
        if not self.of_co_detr:
            return rules_detr.make_inputs(
                keys["seed"], keys["sizes"], keys["num_gts"], self.num_classes
            )
        seeds, sizes, keep = info["seeds"], info["sizes"], info.get("keep")
        if "num_gts" in info:
            made = rules.make_inputs(seeds, sizes, info["num_gts"], self.num_classes, keep)
            pixels, boxes, labels = made
        else:
            pixels = np.zeros((len(sizes), 3, 1, 1), dtype=np.float32)
            objects = map(rules.make_boxes, seeds, sizes, info["keep"])
            boxes, labels = map(list, zip(*objects, strict=True))
        masks = None
        if rules.has_masks(self.shapes):
            masks = list(map(rules.make_masks, boxes, sizes))
        return Inputs(pixels=pixels, sizes=sizes, boxes=boxes, labels=labels, masks=masks)

    @property
    def said(self) -> Mapping[str, Any]:
        """``losses``, with numbers of float64 where both precisions are recorded."""
        return ChainMap(self.losses.get("float64", {}), self.losses)

    def step(self, kind: str = "") -> RecordedStep:
        """The training step whose recorded names end in ``kind``."""
        end, said = f"_{kind}" if kind else "", self.said
        norms = {name: value or 0.0 for name, value in said[f"grad_norms{end}"].items()}
        if self.of_co_detr:
            parts = {name: own for name, own in said["losses"].items() if "loss" in name}
            return RecordedStep(
                losses={name: float(np.sum(own)) for name, own in parts.items()},
                total=said["total"],
                norms=norms,
                norm=said.get("total_grad_norm"),
            )
        return RecordedStep(
            losses=said[f"losses{end}" if kind else "losses_unweighted"],
            weights=said["weight_dict_used"],
            total=said[f"weighted_total{end}"],
            norms=norms,
            norm=said[f"grad_norm_all{end}"],
        )

    @property
    def counts(self) -> dict[str, Any]:
        """Numbers of samples and similar counts, and the losses of stages."""
        found = dict(self.losses.get("counts", {}))
        if "gmm" in found:
            found["gmm_iterations"] = [fit["iterations"] for fit in found["gmm"]]
        stages = "stage_losses_unweighted"
        return found | ({stages: self.losses[stages]} if stages in self.losses else {})

    @property
    def frozen(self) -> list[str]:
        """Official parameters that are not trained; empty if not recorded."""
        names: list[str] = self.losses.get("frozen", self.keys.get("requires_grad_false", []))
        return names

    def input_rows(self) -> Iterator[Row]:
        """One row for each recorded input."""
        return self.rows(input_values(self.inputs()), INPUTS)

    def rows(
        self,
        values: Mapping[str, Any],
        tolerances: Tolerances,
        where: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Row]:
        """One row for each of ``values`` that is recorded, or two for boxes with scores (n, 5) px:
        scores have the tolerance of other arrays. ``where`` as for ``row``, by name.
        """
        for name, value in values.items():
            if name not in self.arrays:
                continue
            tolerance = tolerances.of_array(name, self.arrays[name])
            if not WITH_SCORES.search(name):
                yield self.row(name, value, tolerance, (where or {}).get(name))
                continue
            boxes = torch.arange(5) < 4
            for part, own, columns in (
                ("boxes", tolerance, boxes),
                ("scores", tolerances.arrays, ~boxes),
            ):
                row = self.row(name, value, own, columns)
                yield replace(row, quantity=f"{row.quantity} ({part})")

    def row(
        self, name: str, ours: Any, tolerance: Tolerance = EXACT, where: Tensor | None = None
    ) -> Row:
        """Compare our whole tensor with the recorded values, only where the bool tensor ``where``
        (broadcast to our shape) is True.
        """
        stored = self.arrays[name]
        if name in self.packed:
            bits = np.unpackbits(stored, axis=-1, count=self.packed[name])
            return compare_bits(name, _numpy(ours), bits, int(tolerance.absolute))
        if name in self.thinned and self.thinned[name][0] is None:
            stored = stored.reshape(-1)
        value = self._kept(name, _numpy(ours))
        if where is not None and value.shape == stored.shape:
            chosen = self._kept(name, _numpy(where.expand(ours.shape)))
            value, stored = value[chosen], stored[chosen]
        return compare(name, value, stored, tolerance)

    def _kept(self, name: str, whole: Array) -> Array:
        shape, stride = self.thinned.get(name, (whole.shape, 0))
        if not stride or shape not in (None, whole.shape):
            return whole
        return whole.reshape(-1)[::stride]


def read_arrays(path: Path) -> dict[str, Array]:
    """All arrays of a .npz file."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _require(path: Path, content: dict[str, Any], *needed: str) -> None:
    missing = [key for key in needed if key not in content]
    if missing:
        raise UserError(f"{path} has no {missing[0]}: give a folder of recorded numbers")


def _numpy(value: Any) -> Array:
    array: Array
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return array
