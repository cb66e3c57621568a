"""Records of checkpoints with something planted in them, and what shows that it ran."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from codetr.checkpoints.files import RunRecord

PLACE = tuple[str | int, ...]
HOME = "planted_module"
RESOLVER = "planted"
TEXTS = (
    f"${{{RESOLVER}:}}",
    f"${{oc.create:{{_target_:{HOME}.run}}}}",
    f"a ${{{RESOLVER}:}} b",
    f"\\${{{RESOLVER}:}}",
)
"""What would run where OmegaConf resolves it."""
NODES: tuple[dict[str, Any], ...] = (
    {"_target_": f"{HOME}.run"},
    {"_target_": f"{HOME}.run", "_partial_": True},
    {"_target_": "hydra.utils.get_method", "path": f"{HOME}.run"},
    {"_target_": "codetr.data.augment.Chain", "steps": [{"_target_": f"{HOME}.run"}]},
    {
        "_target_": "torch.nn.Identity",
        "_args_": [{"_target_": f"{HOME}.run", "_recursive_": False}],
        "_convert_": "object",
    },
)
"""What would run where Hydra builds it."""
CODE = """
import pathlib

def run(*args, **options):
    pathlib.Path({canary!r}).touch()
    return {{}}

pathlib.Path({imported!r}).touch()
"""


def places(value: Any, place: PLACE = ()) -> Iterator[tuple[PLACE, Any]]:
    """Every value of a tree of dictionaries and lists, the containers too."""
    yield place, value
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*place, key))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from places(part, (*place, i))


def planted(tree: Any, place: PLACE, value: Any) -> Any:
    """A copy with another value there."""
    result = copy.deepcopy(tree)
    if not place:
        return value
    inner = result
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return result


class File:
    """A .safetensors whose record can be written anew without reading its weights again."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.record = json.loads(file.metadata()[RunRecord.KEY])

    def write(self, path: Path, record: Any) -> Path:
        """With this record, or a text in its place."""
        text = record if isinstance(record, str) else json.dumps(record)
        save_file(self.tensors, path, metadata={RunRecord.KEY: text})
        return path
