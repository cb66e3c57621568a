"""Make a compact copy of a folder of recorded numbers, small enough to be kept with the tests."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from codetr.errors import UserError
from tools.parity.recorded import ARRAYS, INFO, KEYS, LOSSES, STRIDES, read_arrays, read_json

VALUES = 800
"""Numbers kept of a large array."""

WHOLE = re.compile(r"in/(gt|.*crc).*|(eval/)?det\d.*|eval/topk_indices|post_.*|match.*|dn_draw_.*")
"""Arrays that are copied whole: the check takes them as input, or reads them as tables."""


def extract(folder: Path, root: Path) -> str:
    """Copy ``folder`` to ``root``/name with about ``VALUES`` numbers of each array, and report the
    size.

    The strides in stats.json or keys.json are multiplied accordingly; packed bits compress well and
    are kept whole. A folder without strides is copied without thinning, except for numbered cases
    (``case1/...``) above 100 kB, which are left out. Raises UserError if the folder holds no
    recorded numbers.
    """
    if not (folder / ARRAYS).is_file():
        raise UserError(f"{folder} has no {ARRAYS}: nothing to extract")
    target = root / folder.resolve().name
    target.mkdir(parents=True, exist_ok=True)
    for name in (INFO, KEYS, LOSSES, "cases.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    arrays = read_arrays(folder / ARRAYS)
    if (folder / STRIDES).is_file():
        stats = read_json(folder / STRIDES)
        bits = {name: arrays[name] for name in arrays if "packed" in stats[name].get("dtype", "")}
        plain = {name: values for name, values in arrays.items() if name not in bits}
        thin, strides = _thinned(plain, {k: v.get("stride", 1) for k, v in stats.items()})
        arrays = bits | thin
        kept: dict[str, Any] = {name: {"stride": stride} for name, stride in strides.items()}
        kept |= {name: {"shape": stats[name]["shape"], "dtype": "packed"} for name in bits}
        (target / STRIDES).write_text(json.dumps(kept), encoding="utf-8")
    elif "subsampled" in (keys := read_json(folder / KEYS)):
        shapes = {name: list(values.shape) for name, values in arrays.items()}
        said = {name: (shape, 1) for name, shape in shapes.items()} | keys["subsampled"]
        arrays, strides = _thinned(arrays, {name: stride for name, (_, stride) in said.items()})
        keys["subsampled"] = {n: [said[n][0], s] for n, s in strides.items() if s > 1}
        (target / KEYS).write_text(json.dumps(keys), encoding="utf-8")
    else:
        arrays = _without_large_cases(arrays)
    np.savez_compressed(target / ARRAYS, **arrays)  # type: ignore[arg-type]
    size = sum(path.stat().st_size for path in target.iterdir())
    return f"{target}: {size / 1e6:.2f} MB"


def _thinned(
    arrays: dict[str, np.ndarray], strides: dict[str, int]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Keep every n-th value; n is odd so that it does not align with even widths."""
    thin, kept = {}, {}
    for name, values in arrays.items():
        whole = values.size <= VALUES or WHOLE.fullmatch(name)
        step = 1 if whole else -(-values.size // VALUES) | 1
        thin[name] = values if whole else values.reshape(-1)[::step]
        kept[name] = strides.get(name, 1) * step
    return thin, kept


def _without_large_cases(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    sizes: dict[str, int] = {}
    for name, values in arrays.items():
        case = name.split("/")[0]
        sizes[case] = sizes.get(case, 0) + values.nbytes
    return {name: v for name, v in arrays.items() if sizes[name.split("/")[0]] < 100_000}
