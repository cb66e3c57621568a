"""Renaming the keys of an official state dict by rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

DROPPED = ""
"""New name of keys that are not needed."""

Rules = Sequence[tuple[str, str]]
"""Tried in order: the first pattern that matches a whole key gives its new name."""

Named = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """``state`` under our names, and what became of the official keys: ``used`` ones with our name
    (or names, joined by ", "), ``dropped`` ones that are not needed, and ``unused`` ones that no
    rule matches or that belong to an auxiliary head we do not have.
    """

    state: dict[str, Tensor]
    used: Mapping[str, str]
    dropped: tuple[str, ...]
    unused: tuple[str, ...]


def perceptron(theirs: str, ours: str, layers: int) -> Rules:
    """Rules for a perceptron, where ``theirs`` counts its linear ``layers`` only, ``ours`` also the
    activations between them.
    """
    rest = re.compile(theirs).groups + 1
    return [(rf"{theirs}\.layers\.{i}\.(.*)", rf"{ours}.{2 * i}.\{rest}") for i in range(layers)]


def rename(key: str, rules: Rules) -> str | None:
    """Our name of ``key``, ``DROPPED`` if it is not needed, None if no rule matches."""
    matches = ((re.fullmatch(pattern, key), new) for pattern, new in rules)
    return next((match.expand(new) for match, new in matches if match), None)


def named(name: str | None, value: Tensor) -> Named | None:
    """``value`` under a name returned by ``rename``: empty if dropped, None if there is no name."""
    return None if name is None else {} if name == DROPPED else {name: value}


def convert_by(
    official: Named, rules: Rules, parts: Mapping[str, Named] | None = None
) -> Conversion:
    """Rename all keys by ``rules``; keys in ``parts`` are replaced by the tensors given there."""
    several = parts or {}
    return convert(official, lambda k, v: several.get(k) or named(rename(k, rules), v))


def convert(official: Named, place: Callable[[str, Tensor], Named | None]) -> Conversion:
    """Convert all keys; ``place`` maps a key and its tensor to our tensors, as ``named`` does."""
    state: dict[str, Tensor] = {}
    used: dict[str, str] = {}
    dropped, unused = [], []
    for key, value in official.items():
        ours = place(key, value)
        if ours is None:
            unused.append(key)
        elif not ours:
            dropped.append(key)
        else:
            state.update(ours)
            used[key] = ", ".join(ours)
    return Conversion(state=state, used=used, dropped=tuple(dropped), unused=tuple(unused))
