"""Configuration keys that were renamed since earlier versions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from codetr.errors import UserError
from codetr.overrides import is_within, key_of

MOVED_KEYS = {
    "model.transformer.encoder": "model.encoder",
    "model.transformer.query_init": "model.query_init",
    "model.transformer.decoder": "model.decoder",
    "model.transformer.per_query": "supervision.per_query",
    "model.query_head.head": "model.head",
    "model.query_head.criterion": "supervision.criterion",
    "model.query_head.proposal_labels": "supervision.proposal_labels",
    "model.query_head.positive_embedding": "supervision.positive_embedding",
    "model.denoising_queries": "supervision.denoising_queries",
    "model.positive_queries": "supervision.positive_queries",
    "model.hybrid_queries": "supervision.hybrid_queries",
    "model.regions": "supervision.regions",
}
"""New name by old name; keys below an old name moved with it."""

SPLIT = {
    "model/transformer": "model/encoder and model/decoder, or another model",
    "model/query_head": "supervision, or another model",
    "model/neck": "another model, or keys below model.neck",
}
"""Removed groups, with what to give instead."""

_MATCHER = re.compile(r"scheme\.(one_to_one|hybrid|group|teacher)\.matcher\.(?P<below>.+)")


def present_key(key: str) -> str:
    """The current name of a key (``model.query_head.criterion.cls``), unchanged if not renamed."""
    for old, new in MOVED_KEYS.items():
        if is_within(key, [old]):
            return new + key.removeprefix(old)
    return key


def require_present_keys(arguments: Sequence[str]) -> None:
    """Raise UserError for the first override of an old key or a removed group."""
    for argument in arguments:
        key = key_of(argument)
        for group, remedy in SPLIT.items():
            whole = key == group.replace("/", ".") and group != "model/neck"
            if whole or argument.lstrip("+~").startswith((f"{group}=", f"{group}@")):
                raise UserError(f"{argument}: there is no {group} any more: give {remedy}")
        if key != (present := present_key(key)):
            raise UserError(f"{argument}: {key} has moved: give {present}")
        if shared := _MATCHER.fullmatch(key):
            raise UserError(
                f"{argument}: the schemes share one matcher: give supervision.matcher."
                f"{shared['below']}, which is for all of them"
            )
