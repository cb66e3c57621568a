"""Renaming the keys of an official state dict by rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from codetr.checkpoints.official import DROPPED, Conversion

Rules = Sequence[tuple[str, str]]
"""Tried in order: the first pattern that matches a whole key gives its new name, ``DROPPED`` where
it holds nothing that we need."""


def rename(key: str, rules: Rules) -> str | None:
    """Our name of ``key``, empty where we do not need it; None if no rule knows it."""
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement)
    return None


def convert_by(official: Mapping[str, Tensor], rules: Rules) -> Conversion:
    """Rename all keys; values stay as they are."""
    names = {key: rename(key, rules) for key in official}
    used = {key: ours for key, ours in names.items() if ours}
    return Conversion(
        state={ours: official[key] for key, ours in used.items()},
        used=used,
        dropped=tuple(key for key, ours in names.items() if ours == DROPPED),
        unused=tuple(key for key, ours in names.items() if ours is None),
    )
