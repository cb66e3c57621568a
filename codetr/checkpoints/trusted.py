"""Building objects from a configuration that came inside a file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException
from hydra.utils import get_object, instantiate

from codetr.errors import UserError

OWN = "codetr."
TORCH_NN = "torch.nn."


def build_trusted(config: Any, source: str) -> Any:
    """``hydra.utils.instantiate``, for classes of this package and ``torch.nn`` modules alone.

    A checkpoint names classes to build its model from. One that comes from a stranger could name
    any function of Python. ``source`` names the file in messages. Raises UserError for a name that
    is no such class.
    """
    for target in targets(config):
        if not is_trusted(target):
            raise UserError(
                f"{source}: wants to build '{target}', which is no part of a detector here: it may "
                "be made to run code, or be written by a newer version; get it from its author anew"
            )
    return instantiate(config)


def targets(config: Any) -> Iterator[str]:
    """Every ``_target_`` at any depth."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield str(config["_target_"])
        for value in config.values():
            yield from targets(value)
    elif isinstance(config, Sequence) and not isinstance(config, str):
        for value in config:
            yield from targets(value)


def is_trusted(target: str) -> bool:
    """Whether it names a class that was defined here, or a module of ``torch.nn``.

    Where the class was defined counts, not the way to it: ``codetr.some.module.os.system`` is a
    way to a function of Python.
    """
    if not target.startswith((OWN, TORCH_NN)):
        return False
    try:
        found = get_object(target)
    except (HydraException, ImportError, ValueError):
        return False
    return inspect.isclass(found) and found.__module__.startswith((OWN, TORCH_NN))
