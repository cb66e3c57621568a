"""Metadata of a file as plain values: nothing in it is resolved, called or imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from codetr.errors import UserError

MAX_DEPTH = 40
MAX_VALUES = 200_000
"""Limits for a record; ours are less than 10 levels deep and have about a thousand values."""
INTERPOLATION = "${"
_LEAVES = (str, int, float, bool, type(None))


def plain(value: Any, source: str, what: str) -> Any:
    """A copy made of dicts, lists, strings, numbers, booleans and None only, without strings that
    OmegaConf would resolve: an interpolation can hide what is going to be built, and calls
    functions to resolve it.

    ``source`` is the file's name in messages, ``what`` that of the part. Raises UserError for other
    types, interpolations, and values that are too deep or too large for a record.
    """
    copied = plain_text(value, source, what)
    for path, leaf in _leaves(copied, what):
        if isinstance(leaf, str) and INTERPOLATION in leaf:
            shown = leaf if len(leaf) <= 60 else f"{leaf[:60]}..."
            raise UserError(
                f"{source}: {path} holds {shown!r}: an interpolation in a file is never resolved, "
                "not even with trust=true. Write its value instead"
            )
    return copied


def plain_text(value: Any, source: str, what: str) -> Any:
    """As ``plain``, for values that are never passed to OmegaConf: strings may be anything."""
    count = 0

    def copied(part: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            kind = "deep" if depth > MAX_DEPTH else "large"
            raise UserError(f"{source}: its {what} is too {kind} to be that of a model")
        if type(part) in (list, tuple):
            return [copied(item, depth + 1) for item in part]
        if type(part) is dict and all(type(key) in (str, int) for key in part):
            return {key: copied(item, depth + 1) for key, item in part.items()}
        if type(part) in _LEAVES:
            return part
        raise UserError(
            f"{source}: its {what} holds a {type(part).__name__}, which is not a plain value: "
            "export it again, or download the file again"
        )

    return copied(value, 0)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every key and every value that is not a container, each with its path."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"{path}, a key of it", key
            yield from _leaves(part, f"{path}.{key}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from _leaves(part, f"{path}[{i}]")
    else:
        yield path, value
