"""Published weights by name: ``zoo:NAME``. Tables are in conf/zoo, and in
``$CODETR_HOME/zoo/*.yaml`` for a user's own weights; ``zoo_files`` fetches the files.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from codetr.checkpoints.experiment import CONF, compose_experiment
from codetr.errors import UserError

ZOO = "zoo:"
"""Prefix of the name of published weights."""
HOME = "CODETR_HOME"
"""Environment variable for the folder of files that are kept between runs."""


@dataclass(frozen=True, kw_only=True)
class Url:
    """A file at a URL."""

    url: str


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a model on the Hugging Face Hub, at a ``revision``: a commit (40 digits), a branch
    or a tag; by default the branch ``main``.
    """

    repo: str
    file: str
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class ByHand:
    """A file without a stable URL, to be downloaded by hand from ``page``."""

    page: str


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One published file: the ``experiment`` (with ``overrides``) that it belongs to, the published
    box ``ap`` in percent, where it is available, and what is known of its content: its ``sha256``
    or the first digits of it, and its size in ``bytes``. ``source`` is the publisher.
    """

    name: str
    place: Url | HubFile | ByHand
    experiment: str
    overrides: tuple[str, ...] = ()
    ap: float | None = None
    sha256: str | None = None
    bytes: int | None = None
    source: str = ""
    license: str = ""

    @property
    def file(self) -> str:
        """Its file name in our folder, unique among entries."""
        place = self.place
        original = place.url if isinstance(place, Url) else getattr(place, "file", "")
        return f"{self.name}{'.safetensors' if original.endswith('.safetensors') else '.pth'}"

    @property
    def pinned(self) -> bool:
        """Whether its hash is known, or its address is fixed: not a branch or tag on the Hub, which
        may change.
        """
        fixed = not isinstance(self.place, HubFile) or bool(
            re.fullmatch("[0-9a-f]{40}", self.place.revision or "")
        )
        return fixed or self.sha256 is not None

    def config(self, num_classes: int) -> DictConfig:
        """The configuration of train.py for the file's model."""
        return compose_experiment(self.experiment, num_classes, self.overrides)


PLACES = ("url", "hub", "page")
"""Keys for the location of a file: an entry has exactly one of them."""
KEYS: Mapping[str, tuple[type, ...]] = {
    "experiment": (str,),
    "overrides": (list,),
    "ap": (int, float),
    "sha256": (str,),
    "bytes": (int,),
}
"""Other keys of an entry, with their types."""


def home() -> Path:
    """The folder of files that are kept between runs: ``$CODETR_HOME``, or ~/.cache/codetr."""
    return Path(os.environ.get(HOME) or "~/.cache/codetr").expanduser()


def zoo_folder() -> Path:
    """The folder of downloaded weights and of the user's own tables."""
    return home() / "zoo"


def read_zoo() -> dict[str, ZooEntry]:
    """All entries by name, table by table. Raises UserError for an invalid table, and for a name
    that is in two tables.
    """
    found: dict[str, ZooEntry] = {}
    for folder in (CONF / "zoo", zoo_folder()):
        for path in sorted(folder.glob("*.yaml")):
            for entry in read_table(path):
                if entry.name in found:
                    raise UserError(f"{path}: {entry.name} is also in another table: rename it")
                found[entry.name] = entry
    return found


def find_entry(source: str) -> ZooEntry:
    """The entry of ``zoo:NAME``. Raises UserError, with similar names, if there is none."""
    entries, name = read_zoo(), source.removeprefix(ZOO)
    if name not in entries:
        like = " or ".join(difflib.get_close_matches(name, entries, n=3, cutoff=0.5))
        hint = (
            f"did you mean {like}? codetr-zoo lists them all" if like else "codetr-zoo lists them"
        )
        raise UserError(f"{source}: no published weights of that name: {hint}")
    return entries[name]


def read_table(path: Path) -> Iterator[ZooEntry]:
    """The entries of one table. Raises UserError for missing, unknown and misspelt keys."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML ({reason}): repair it") from None
    if not isinstance(content, Mapping) or not isinstance(content.get("models"), Mapping):
        raise UserError(f"{path}: has no table 'models' of entries by name: see conf/zoo")
    common = {key: str(content.get(key, "")) for key in ("source", "license")}
    for name, value in content["models"].items():
        yield _entry(f"{path}: models.{name}", str(name), value, common)


def _entry(where: str, name: str, value: Any, common: Mapping[str, Any]) -> ZooEntry:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is not a table of keys: see conf/zoo")
    own = {key: part for key, part in value.items() if key not in PLACES}
    for key, part in own.items():
        if key not in KEYS:
            raise UserError(f"{where}.{key} is not a known key: give {', '.join(KEYS)}")
        if not isinstance(part, KEYS[key]):
            raise UserError(f"{where}.{key} is {part!r}: give a {KEYS[key][-1].__name__}")
    if not re.fullmatch("[0-9a-f]{0,64}", own.get("sha256", "")):
        raise UserError(f"{where}.sha256 is '{own['sha256']}': give its first digits, or all 64")
    values: dict[str, Any] = {
        "experiment": name,
        **own,
        "overrides": tuple(own.get("overrides", ())),
    }
    return ZooEntry(name=name, place=_place(where, value), **values, **common)


def _place(where: str, value: Mapping[str, Any]) -> Url | HubFile | ByHand:
    found = [key for key in PLACES if key in value]
    if len(found) != 1:
        raise UserError(f"{where}: give one of url, hub and page, not {found}")
    place = value[found[0]]
    if found == ["hub"]:
        try:
            return HubFile(**place)
        except TypeError:
            raise UserError(
                f"{where}.hub is {place!r}: give repo, file and optionally revision"
            ) from None
    if not re.match("https?://", str(place)):
        raise UserError(f"{where}.{found[0]} is '{place}': give an http or https URL")
    return Url(url=place) if found == ["url"] else ByHand(page=place)
