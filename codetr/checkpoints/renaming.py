"""Renaming the keys of an official state dict by rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

DROPPED = ""
"""New name of keys that hold nothing that we need."""

Rules = Sequence[tuple[str, str]]
"""Tried in order: the first pattern that matches a whole key gives its new name."""

Named = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """``state`` under our names. Of the official keys: ``used`` ones with our name (several of ours
    joined by ", "), ``dropped`` ones that hold nothing we need, and ``unused`` ones: no rule knows
    them, or they belong to an auxiliary head that is not among ours.
    """

    state: dict[str, Tensor]
    used: Mapping[str, str]
    dropped: tuple[str, ...]
    unused: tuple[str, ...]


def perceptron(theirs: str, ours: str, layers: int) -> Rules:
    """Of a perceptron: theirs numbers its linear ``layers``, ours the activations between, too."""
    rest = re.compile(theirs).groups + 1
    return [(rf"{theirs}\.layers\.{i}\.(.*)", rf"{ours}.{2 * i}.\{rest}") for i in range(layers)]


def rename(key: str, rules: Rules) -> str | None:
    """Our name of ``key``, ``DROPPED`` where we do not need it; None if no rule knows it."""
    matches = ((re.fullmatch(pattern, key), new) for pattern, new in rules)
    return next((match.expand(new) for match, new in matches if match), None)


def under(name: str | None, value: Tensor) -> Named | None:
    """``value`` under what ``rename`` says."""
    return None if name is None else {} if name == DROPPED else {name: value}


def convert_by(
    official: Named, rules: Rules, parts: Mapping[str, Named] | None = None
) -> Conversion:
    """Rename all keys; one of ``parts`` becomes the tensors that it holds, by our names."""
    several = parts or {}
    return convert(official, lambda k, v: several.get(k) or under(rename(k, rules), v))


def convert(official: Named, place: Callable[[str, Tensor], Named | None]) -> Conversion:
    """``place`` says what becomes of a key and its tensor, as ``under``."""
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
