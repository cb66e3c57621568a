"""Building objects from a configuration that came inside a file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException
from hydra.utils import get_object, instantiate

from codetr.errors import UserError

PACKAGES = ("codetr.", "torch.nn.", "torchvision.transforms.v2.")
"""Where a file may take classes from: building one of these runs no code of the file's."""

FUNCTIONS = ("codetr.evaluation.lvis_evaluator", "codetr.data.repeat.image_counts")
"""The functions that it may name. Not all of this package: some build what they are given."""


def build_trusted(config: Any, source: str, trust: bool = False) -> Any:
    """``hydra.utils.instantiate``, after ``require_trusted``, which ``trust`` leaves out."""
    if not trust:
        require_trusted(config, source)
    return instantiate(config)


def require_trusted(config: Any, source: str, chosen: Any = ()) -> None:
    """Check every class that a configuration from inside a file names, at any depth.

    A checkpoint names classes to build its model from. One that comes from a stranger could name
    any function of Python. ``source`` names the file in messages; what the user's own
    configuration ``chosen`` names is not the file's. Raises UserError for any other name that is
    no class of ``PACKAGES``.
    """
    own = set(targets(chosen))
    for target in targets(config):
        if target not in own and not is_trusted(target):
            raise UserError(
                f"{source}: wants to build '{target}', which is no class of codetr: it could run "
                "any code. Give trust=true if it is a class of your own"
            )


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
    """Whether it names a class that was defined in ``PACKAGES``, or one of ``FUNCTIONS``.

    Where the class was defined counts, not the way to it: ``codetr.some.module.os.system`` is a
    way to a function of Python.
    """
    if target in FUNCTIONS:
        return True
    if not target.startswith(PACKAGES):
        return False
    try:
        found = get_object(target)
    except (HydraException, ImportError, ValueError):
        return False
    return inspect.isclass(found) and found.__module__.startswith(PACKAGES)
