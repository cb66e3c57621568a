"""Reading official checkpoint files: one or two sets of weights, and class names.

The file of a model trained with a moving average has two sets. mmdetection's hooks (2.x:
``ExpMomentumEMAHook``; 3.x: mmengine's ``EMAHook``) swap them before validation and saving. So the
plain names hold the *average*, which the official evaluation loads, and the EMA names hold the
weights that were being trained: ``ema_backbone_conv1_weight`` within ``state_dict`` in 2.x,
``module.backbone.conv1.weight`` in ``ema_state_dict`` in 3.x. (Only in a 2.x file saved within an
epoch, before the swap, is it the other way round.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from codetr.checkpoints.coco import CATEGORY_ROWS, COCO
from codetr.checkpoints.dialects import DIALECTS, Dialect, dialect_of
from codetr.checkpoints.pickled import read_pickled
from codetr.classes import ClassList
from codetr.errors import UserError
from codetr.torch_files import require_header

WeightSet = Literal["plain", "ema"]
"""Which names to take the weights from if a file has two sets."""

_EMA = "ema_"
_PARALLEL = "module."


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """``weights`` under the official names of a ``dialect`` (``other``: keys of the set that was
    not chosen), the class list (with ids from 1 unless it is COCO's), the name of the ``config`` it
    was trained with according to the file (``co_dino_5scale_r50_1x_coco``, or empty), and
    ``remarks`` for the user on how it was read.
    """

    path: Path
    dialect: Dialect
    weights: dict[str, Tensor]
    other: tuple[str, ...]
    classes: ClassList
    config: str
    remarks: tuple[str, ...]


def read_official_file(path: str | Path, weight_set: WeightSet = "plain") -> OfficialFile:
    """Read a ``.pth`` (without running code, see ``pickled``) or ``.safetensors`` file.

    Raises UserError for a file that is missing, damaged or unsafe, contains no supported model, or
    lacks the ``weight_set``.
    """
    path = Path(path)
    content = _content(path)
    plain, averages = _weight_sets(path, content)
    meta = _mapping(content, "meta")
    return identified(path, plain, averages, _names(meta), _config_name(meta), weight_set)


def identified(
    path: Path,
    plain: dict[str, Tensor],
    averages: Mapping[str, Tensor] | None = None,
    names: tuple[str, ...] | None = None,
    config: str = "",
    weight_set: WeightSet = "plain",
) -> OfficialFile:
    """The official file with these ``plain`` weights under official names, its dialect and classes
    identified; ``averages`` is its second set, ``names`` are those of its classes, if known. Raises
    UserError as ``read_official_file``.
    """
    averages = dict(averages or {})
    remarks = []
    dialect = dialect_of(plain)
    if dialect is None:
        known = "; ".join(d.repository for d in DIALECTS)
        raise UserError(
            f"{path}: its tensor names are not those of a supported repository ({known}): give "
            "an official checkpoint of one of them (for a run of this program, leave out "
            "'official:')"
        )
    ids = dialect.classes(plain) == CATEGORY_ROWS and _by_category_id(names)
    if dialect.select_coco is not None and ids:
        names = None
        plain = dialect.select_coco(plain)
        averages = dialect.select_coco(averages) if averages else {}
        remarks.append("class rows are COCO's category ids: took those of its 80 classes")
    if weight_set == "ema" and not averages:
        raise UserError(f"{path}: has a single set of weights: leave out weights=ema")
    if averages:
        remarks.append(
            "two sets of weights: took "
            + ("the plain" if weight_set == "plain" else "the EMA")
            + " names; files saved at the end of an epoch have the moving average, which the "
            "official evaluation uses, under the plain ones"
        )
    classes, remark = _classes(names, dialect.classes(plain))
    chosen = plain | averages if weight_set == "ema" else plain
    return OfficialFile(
        path=path,
        dialect=dialect,
        weights=chosen,
        other=tuple(f"{'plain' if weight_set == 'ema' else 'ema'}: {name}" for name in averages),
        classes=classes,
        config=config,
        remarks=(*remarks, remark) if remark else tuple(remarks),
    )


def _by_category_id(names: tuple[str, ...] | None) -> bool:
    """Whether ``names`` may be COCO's, indexed by category id; unknown names may be."""
    if names is None or len(names) != CATEGORY_ROWS:
        return True
    return tuple(names[i] for i in COCO.category_ids) == COCO.names


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file. Raises UserError if it is missing or damaged."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such checkpoint file")
    require_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}): download it again"
        ) from error


def _content(path: Path) -> Mapping[Any, Any]:
    if path.suffix == ".safetensors":
        return read_tensors(path)
    content = read_pickled(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: contains no mapping of weights: give an official checkpoint")
    return content


def _weight_sets(
    path: Path, content: Mapping[Any, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights with plain and with EMA names, both under plain names."""
    inside = next((k for k in ("state_dict", "model") if isinstance(content.get(k), Mapping)), None)
    state = _tensors(path, content if inside is None else content[inside])
    flat = {_EMA + name.replace(".", "_"): name for name in state if not name.startswith(_EMA)}
    averages = {flat[name]: value for name, value in state.items() if name in flat}
    plain = {name: value for name, value in state.items() if name not in flat}
    if isinstance(content.get("ema_state_dict"), Mapping):
        found = _tensors(path, content["ema_state_dict"])
        averages |= {name: value for name, value in found.items() if name in plain}
    return plain, averages


def _tensors(path: Path, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The state dict without the prefix of parallel training."""
    wrong = next((k for k, v in state.items() if not isinstance(v, Tensor) and k != "steps"), None)
    if wrong is not None:
        raise UserError(
            f"{path}: '{wrong}' is not a plain tensor: give an official checkpoint, or .safetensors"
        )
    return {str(k).removeprefix(_PARALLEL): v for k, v in state.items() if isinstance(v, Tensor)}


def _mapping(content: Mapping[Any, Any], key: str) -> Mapping[Any, Any]:
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


def _names(meta: Mapping[Any, Any]) -> tuple[str, ...] | None:
    """Class names, in ``CLASSES`` of mmdetection 2 or ``dataset_meta`` of mmdetection 3."""
    data = _mapping(meta, "dataset_meta")
    found = next((m[k] for m in (data, meta) for k in ("classes", "CLASSES") if m.get(k)), None)
    if isinstance(found, str):
        return (found,)
    if isinstance(found, Sequence) and all(isinstance(name, str) for name in found):
        return tuple(found)
    return None


def _classes(names: tuple[str, ...] | None, count: int) -> tuple[ClassList, str]:
    """The class list of ``count`` classes, and a remark about it (may be empty)."""
    numbers = tuple(range(1, count + 1))
    if names is not None and len(names) == count:
        ids = COCO.category_ids if names == COCO.names else numbers
        return ClassList(names=names, category_ids=ids), ""
    found = "no class names" if names is None else f"{len(names)} class names for {count} classes"
    if count == len(COCO):
        return COCO, f"{found}: took COCO's, since there are {count} classes"
    made = tuple(f"class {number}" for number in numbers)
    return ClassList(names=made, category_ids=numbers), f"{found}: numbered them 1 to {count}"


def _config_name(meta: Mapping[Any, Any]) -> str:
    """The configuration's name from ``exp_name`` (2.x) or ``experiment_name`` (3.x, with a
    time).
    """
    name = next((meta[k] for k in ("exp_name", "experiment_name") if k in meta), "")
    return Path(name).stem if isinstance(name, str) else ""
