"""Validation of a composed configuration, before anything is built from it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from codetr.errors import UserError, first_line
from codetr.overrides import is_within, key_of
from codetr.settings.annotated import arguments_of
from codetr.settings.kinds import NULL, Either, FilePath, FolderName, Kind
from codetr.settings.relations import RELATIONS, Relation
from codetr.settings.rules import is_own, rule_for

Key = tuple[str, ...]
"""The parts of a dotted key."""
HYDRA_KEYS = frozenset({"_target_", "_partial_", "_convert_", "_recursive_", "_args_"})
OPEN_GROUPS = (
    "callbacks",
    "checkpointing",
    "logger",
    "scheme",
    "aux_heads",
    "optimizer.rules",
    "swept",
)
"""Groups to which a user may add parts of any name."""
OPTION_LISTS = ("scheme", "aux_heads", "logger")
"""Groups that take a list of options."""
RECORD_GROUPS = {
    "data": "data._target_",
    "evaluation": "evaluation.evaluator._target_",
    "augmentation": "augmentation.eval._target_",
}
"""Groups whose settings in a checkpoint's record a command can override one by one, each with a key
that exists only where an option of the group was chosen instead.
"""
_MAX_SHOWN = 60  # characters of a value in a message
_NAMED = re.compile(r"[^\s{}:,$'\"()\[\]]+")


def names_as_text(cfg: DictConfig, given: Sequence[str] = ()) -> None:
    """Convert file and folder names that Hydra parsed as numbers (``data.root=2024``) to strings,
    in place, spelled as in the override in ``given`` (``1e3``, not 1000.0).
    """
    written = {key_of(override): override.partition("=")[2] for override in given}
    for key, value, takes in settings_of(_plain(cfg), ()):
        if takes is not None and _names_a_file(takes) and type(value) in (int, float, bool):
            name = ".".join(key)
            OmegaConf.update(cfg, name, written.get(name, str(value)))


def _plain(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=False)


def _names_a_file(takes: Kind) -> bool:
    if isinstance(takes, Either):
        return _names_a_file(takes.first) or _names_a_file(takes.second)
    return isinstance(takes, FilePath | FolderName)


def check_settings(
    cfg: DictConfig,
    given: Sequence[str] = (),
    nulls: bool = False,
    relations: Sequence[Relation] = RELATIONS,
) -> None:
    """Check every setting of ``cfg``: its value, by ``rules`` and the annotations of constructors;
    whether anything reads it; and the ``relations`` between settings.

    ``given`` are the overrides that ``cfg`` was composed with, among them new keys
    (``+key=value``). With ``nulls``, any setting may be null, since a checkpoint supplies its
    value, and relations are not checked. File names are converted to strings (``names_as_text``).
    Raises UserError for the first mistake: key, value and remedy in one line.
    """
    _require_distinct(given)
    recorded = record_keys(_plain(cfg), given) if nulls else ()
    _require_known(_plain(cfg), given, recorded)
    names_as_text(cfg, given)
    _check(_plain(cfg), nulls, interpolated=False, recorded=recorded)
    if nulls:
        return
    try:
        resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_interpolation_text(error)) from None
    _check(resolved, nulls, interpolated=True)
    for relation in relations:
        problem = relation(cfg)
        if problem is not None:
            raise UserError(problem)


def _interpolation_text(error: OmegaConfBaseException) -> str:
    reason = " ".join(str(error).split()).partition(" full_key:")[0]
    return f"{error.full_key or 'the configuration'}: {reason}: correct the name in ${{...}}"


def require_setting(name: str, value: Any) -> None:
    """Raise UserError if ``value`` is not of the kind of the setting with the full key ``name``."""
    takes = rule_for(tuple(name.split(".")))
    if takes is not None and not takes.takes(value):
        raise UserError(_not_of_its_kind(name, value, takes))


def _not_of_its_kind(name: str, value: Any, takes: Kind) -> str:
    return f"{name}={_shown(value)}: give {takes}"


def _check(config: Any, nulls: bool, interpolated: bool, recorded: Sequence[str] = ()) -> None:
    """Raise UserError for a value that is not of its kind. ``interpolated``: whether interpolations
    are resolved. A mapping at a key in ``recorded`` may lack what a checkpoint's record adds.
    """
    wrong = []
    for key, value, takes in settings_of(config, ()):
        written = isinstance(value, str) and "${" in value and not interpolated
        missing = value == "???"
        if takes is None or written or missing or (nulls and value is None):
            continue
        if isinstance(value, Mapping) and any(is_within(k, [".".join(key)]) for k in recorded):
            continue
        if not takes.takes(value):
            wrong.append((key, value, takes))
    if wrong:  # of a value and its copies by interpolation, the shortest key is the original
        key, value, takes = min(wrong, key=lambda found: len(found[0]))
        raise UserError(_not_of_its_kind(".".join(key), value, takes))


def settings_of(value: Any, key: Key) -> Iterator[tuple[Key, Any, Kind | None]]:
    """Every key and value below ``key``, including groups, with its kind where that is known."""
    if isinstance(value, Mapping):
        takes = _arguments(value, key)
        for name, part in value.items():
            if name in HYDRA_KEYS:
                continue
            inner = (*key, str(name))
            yield inner, part, _kind(inner, part, takes.get(str(name)))
            yield from settings_of(part, inner)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            if isinstance(part, Mapping | list):
                yield from settings_of(part, (*key[:-1], f"{key[-1]}[{number}]"))


def _kind(key: Key, value: Any, annotated: Kind | None) -> Kind | None:
    """The kind by rule, or else by the annotation. A rule that does not name the whole key applies
    to several constructors: null is then valid if the annotation says so, and an object built in
    place of a value is checked by its own constructor.
    """
    rule = rule_for(key)
    if rule is None or is_own(key):
        return annotated if rule is None else rule
    if isinstance(value, Mapping) and "_target_" in value:
        return None if not rule.takes(value) else rule
    optional = annotated is not None and annotated.takes(None) and not rule.takes(None)
    return rule | NULL if optional else rule


def _arguments(part: Mapping[Any, Any], key: Key) -> Mapping[str, Kind | None]:
    """The arguments that the ``_target_`` of ``part`` takes, by name. Raises UserError if it cannot
    be imported, and for a setting that it does not take.
    """
    target = part.get("_target_")
    if not isinstance(target, str) or "${" in target:
        return {}
    try:
        arguments = arguments_of(target)
    except Exception as error:  # the imported module may raise anything
        reason = first_line(error)
        raise UserError(
            f"{'.'.join(key)}._target_={_shown(target)}: cannot be imported ({reason}): correct it"
        ) from None
    for name in part:
        known = str(name) in arguments.kinds or name in HYDRA_KEYS or is_own((*key, str(name)))
        if not known and not arguments.open:
            own = sorted(arguments.kinds.keys() - {"self"})
            raise UserError(
                f"{'.'.join((*key, str(name)))}: {target.rpartition('.')[2]} takes no '{name}': "
                f"{instead(str(name), own)}"
            )
    return arguments.kinds


def _require_distinct(given: Iterable[str]) -> None:
    """Raise UserError if a list of options names one twice: Hydra would include it only once."""
    for override in given:
        group, _, value = override.partition("=")
        if group not in OPTION_LISTS:
            continue
        names = [name.strip(" '\"") for name in value.strip(" []").split(",")]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            remedy = "name it once"
            if group == "aux_heads":
                remedy += f"; an equal second head is '+aux_heads@aux_heads.{twice}_2=[{twice}]'"
            raise UserError(f"{override}: names {twice} twice: {remedy}")


def record_keys(config: Any, given: Iterable[str]) -> list[str]:
    """The keys of ``given`` that override a checkpoint's record, see ``RECORD_GROUPS``."""
    groups = [g for g, mark in RECORD_GROUPS.items() if _at(config, tuple(mark.split("."))) is None]
    return [key for key in map(key_of, given) if key.startswith(tuple(f"{g}." for g in groups))]


def require_taken(config: Any, keys: Iterable[str]) -> None:
    """Check the settings ``keys`` of ``config`` that override a checkpoint's record. Raises
    UserError for the first that its constructor does not take or whose value is not of its kind.
    """
    for name in keys:
        key = tuple(name.split("."))
        part = _at(config, key[:-1])
        if isinstance(part, Mapping) and key[-1] in part:
            only = {k: part[k] for k in ("_target_", key[-1]) if k in part}
            takes = _kind(key, part[key[-1]], _arguments(only, key[:-1]).get(key[-1]))
            if takes is not None and not takes.takes(part[key[-1]]):
                raise UserError(_not_of_its_kind(name, part[key[-1]], takes))


def _require_known(
    config: Mapping[str, Any], given: Iterable[str], recorded: Sequence[str]
) -> None:
    """Raise UserError for an added key that nothing reads; ``require_taken`` checks the keys in
    ``recorded``.
    """
    for override in given:
        name = override.lstrip("+").partition("=")[0]
        if not override.startswith("+") or "/" in name or "@" in name:
            continue
        if key_of(override) in recorded:
            continue
        key = tuple(key_of(override).split("."))
        if _chose_an_option(config, key, override):
            _require_read(config, key, override)
            continue
        above, held = ".".join(key[:-1]), _at(config, key)
        if is_own(key) or any(f"{above}.".startswith(f"{group}.") for group in OPEN_GROUPS):
            continue
        beside = _at(config, key[:-1])
        if isinstance(beside, Mapping) and "_target_" in beside:
            continue  # an argument: checked with its constructor
        if isinstance(held, Mapping) and "_target_" in held:
            continue  # an object that an interpolation may refer to
        if len(key) > 1 and rule_for(key) is not None:
            continue  # an existing setting, given as ++key
        own = ".".join(key)
        known = [".".join(k) for k, *_ in settings_of(config, ()) if k[: len(key)] != key]
        raise UserError(
            f"{override.lstrip('+')}: nothing reads a setting '{own}': {instead(own, known)}"
        )


def _chose_an_option(config: Mapping[str, Any], key: Key, override: str) -> bool:
    """Whether ``+key=value`` has chosen options of a config group in Hydra's search path. The key
    then holds the content of their files, or is absent if they declare another package.
    """
    if override.partition("=")[2].lstrip().startswith("{"):
        return False
    above = _at(config, key[:-1])
    absent = not isinstance(above, Mapping) or key[-1] not in above
    return absent or isinstance(_at(config, key), Mapping)


def _require_read(config: Mapping[str, Any], key: Key, override: str) -> None:
    """Raise UserError if an option of a user's own group adds settings that nothing reads: no rule
    names them, and no interpolation refers to them.
    """
    brought = [key] if isinstance(_at(config, key), Mapping) else [(name,) for name in config]
    known = [str(name) for name in config if rule_for((str(name),)) is not None]
    for own in brought:
        held = _at(config, own)
        part = isinstance(held, Mapping) and "_target_" in held
        if rule_for(own) is None and not part and not _is_referred_to(config, own):
            name = ".".join(own)
            raise UserError(
                f"{override.lstrip('+')}: nothing reads the settings '{name}' that it brings: "
                f"{instead(name, known)}, or refer to them by ${{{name}.KEY}}"
            )


def _is_referred_to(value: Any, own: Key, place: Key = ()) -> bool:
    """Whether an interpolation outside of the key ``own`` refers to it."""
    if place == own:
        return False
    if isinstance(value, Mapping):
        return any(_is_referred_to(part, own, (*place, str(name))) for name, part in value.items())
    if isinstance(value, list):
        return any(_is_referred_to(part, own, (*place, "")) for part in value)
    return isinstance(value, str) and any(
        is_within(name, [".".join(own)]) for name in _interpolated(value, place)
    )


def _interpolated(text: str, place: Key) -> Iterator[str]:
    """All possible keys in the interpolations of the value at ``place``: also nested
    (``${a.${b}}``), relative (``${..a}``) and as arguments of resolvers (``${oc.select:a,0}``).
    """
    inside = text.partition("${")[2]
    for found in _NAMED.findall(re.sub(r"(?<=\w)\[", ".", inside)):
        name = found.lstrip(".")
        above = len(found) - len(name)
        yield ".".join((*place[:-above], name) if above else (name,)).rstrip(".")


def _at(config: Any, key: Key) -> Any:
    for name in key:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def instead(name: str, known: Sequence[str]) -> str:
    """A remedy for an unknown name: the known key that ends in it, or the most similar one."""
    near = [k for k in known if k.endswith(f".{name}")]
    near = near or difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else "correct its name, or leave it out"


def _shown(value: Any) -> str:
    text = "null" if value is None else " ".join(str(value).split())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
