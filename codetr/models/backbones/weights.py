"""Loading of backbone weights, with a report of what was used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn

from codetr.errors import UserError, abbreviated
from codetr.models.backbones.frozen_norm import COUNTER
from codetr.models.backbones.hub_access import hub_weights
from codetr.torch_files import require_archive, require_header, require_held

PREFIXES = ("module.", "model.", "backbone.", "body.")
"""Prefixes that training programs put before the names of a backbone."""

WRAPPERS = ("state_dict", "model", "model_state", "state_dict_ema", "model_ema", "module")
"""Under which keys .pth files keep the weights, when not at the top."""
MOST_WRAPPERS = 4
"""Largest depth of nested wrappers."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Names: ``loaded`` of the module, ``new`` of the module that the file lacks, ``dropped`` of
    the file (with the reason) that the module has no place for.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    dropped: Mapping[str, str]

    def table(self, title: str) -> Table:
        """The report for the terminal."""
        table = Table("", "tensors", "such as", title=escape(title))
        dropped = [f"{name} ({reason})" for name, reason in self.dropped.items()]
        rows = {"loaded": self.loaded, "new": self.new, "dropped": dropped}
        for kind, names in rows.items():
            table.add_row(kind, str(len(names)), escape(abbreviated(list(names))))
        return table


def require_one_source(name: str, pretrained: bool, weights: str | None) -> None:
    """Raise UserError where backbone ``name`` is given both sources of weights."""
    if pretrained and weights:
        raise UserError(
            f"backbone {name}: model.backbone.pretrained=true and "
            f"model.backbone.weights={weights} exclude each other: drop one"
        )


def initial_weights(
    name: str, pretrained: bool, weights: str | None
) -> tuple[Mapping[str, Tensor], str] | None:
    """What backbone ``name`` starts from, and the source for messages: the file ``weights``, or
    those that timm's hub has under ``name`` if ``pretrained``; None: its own initial values.

    Raises UserError where both are given, and where either cannot be read.
    """
    require_one_source(name, pretrained, weights)
    if weights:
        return read_weights(weights), str(weights)
    return (hub_weights(name), name) if pretrained else None


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file by name, on the CPU; ``.pth`` files are read
    with ``weights_only=True``. Raises UserError for missing and broken files.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such weights file: give a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            require_header(path)
            return load_file(path)
        require_archive(path)
        found = _named(torch.load(path, map_location="cpu", weights_only=True))
        require_held(found.items())
    except Exception as error:  # torch's unpickler raises all kinds of errors on foreign bytes
        reason = (str(error).splitlines() or ["cut off"])[0]
        raise UserError(
            f"{path}: not readable as weights ({reason}): give a .safetensors file or a .pth of "
            "tensors alone"
        ) from error
    if not found:
        raise UserError(
            f"{path}: holds no named tensors: give a .safetensors or .pth file of weights"
        )
    return found


def _named(content: Any) -> dict[str, Tensor]:
    """The tensors of a mapping, or of one within it; none of anything else."""
    for _ in range(MOST_WRAPPERS):
        if not isinstance(content, Mapping):
            break
        inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            return {str(k): value for k, value in content.items() if isinstance(value, Tensor)}
        content = inner
    return {}


def _flat(name: str) -> str:
    """The name without leading ``PREFIXES``, and with underscores for dots, since timm's
    ``features_only`` makes ``layers_0.blocks`` of ``layers.0.blocks``.
    """
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name.replace(".", "_")


def match_weights(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoadReport]:
    """Find each of the module's tensors in a file, by name and shape.

    Returns what to load, under the module's names, and the report.
    """
    places = {_flat(name): name for name in state}
    matched: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for name, value in weights.items():
        place = places.get(_flat(name))
        if place is None:
            dropped[name] = "no place"
        elif value.shape != state[place].shape:
            dropped[name] = f"shape {tuple(value.shape)} instead of {tuple(state[place].shape)}"
        else:
            matched[place] = value
    missing = (name for name in state if name not in matched)
    new = tuple(name for name in missing if not name.endswith(COUNTER))  # many files lack it
    return matched, LoadReport(loaded=tuple(matched), new=new, dropped=dropped)


def load_named_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    may_lack: Callable[[str], object] | None = None,
) -> LoadReport:
    """Load ``weights`` (by timm's names) into ``module``, in place; messages name their ``source``.

    Prints a table of what was loaded, what is new (keeps its initial values) and what was
    dropped. Raises UserError where nothing fits or, given ``may_lack``, where a tensor is missing
    for whose name it is false.
    """
    matched, report = match_weights(weights, module.state_dict())
    if not report.loaded:
        raise UserError(
            f"{source}: none of its {len(report.dropped)} tensors fits the backbone: check that "
            "the file belongs to model.backbone.name"
        )
    missing = [name for name in report.new if may_lack and not may_lack(name)]
    if missing:
        raise UserError(
            f"{source}: {len(missing)} of the backbone's tensors are not in it or have another "
            f"shape, such as {missing[0]}: give weights of the same architecture (see "
            "model.backbone.name)"
        )
    module.load_state_dict(matched, strict=False)
    Console().print(report.table(f"backbone weights of {Path(source).name}"))
    return report
