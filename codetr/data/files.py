"""Recognising image files, and finding files by inexact names."""

from __future__ import annotations

import importlib.util
import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from PIL import Image, ImageFile

log = logging.getLogger(__name__)

_NO_PICTURES = frozenset({"EPS", "MPEG", "PCD", "FTEX", "GBR", "IPTC", "CUR", "FLI"})
"""Formats of Pillow that do not count as images: programs that need an interpreter, videos, brushes
and cursors, and formats whose suffix usually means another one (``.pcd``: point clouds)."""

_HEIF = (".heic", ".heif", ".hif")
_OF_OTHERS = frozenset(
    {*_HEIF, ".avif", ".avifs", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
    | {".raf", ".orf", ".rw2", ".dcm", ".jp2", ".webp", ".psd", ".eps"}
)
"""Suffixes of image formats that not every Pillow decodes."""


@cache
def register_plugins() -> None:
    """Enable HEIC in Pillow if the package for it is installed."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of all formats that the installed Pillow decodes, in lower case with a dot."""
    register_plugins()
    suffixes = Image.registered_extensions()  # loads all plugins
    return frozenset(suffix for suffix, kind in suffixes.items() if _is_decoded(kind))


def _is_decoded(kind: str) -> bool:
    if kind not in Image.OPEN or kind in _NO_PICTURES:
        return False
    factory = Image.OPEN[kind][0]
    # Stubs recognise files but cannot decode them.
    return not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile))


def is_image(file: str | PurePosixPath) -> bool:
    """Whether a file is an image, by its suffix."""
    return PurePosixPath(file).suffix.lower() in image_suffixes()


def is_foreign(file: str) -> bool:
    """Whether a file is an image that the installed Pillow cannot decode, by its suffix."""
    return PurePosixPath(file).suffix.lower() in _OF_OTHERS and not is_image(file)


def missing_plugin(*files: str) -> str:
    """What to install in order to read those of ``files`` that Pillow cannot decode; empty if
    unknown.
    """
    heif = any(PurePosixPath(f).suffix.lower() in _HEIF and not is_image(f) for f in files)
    return "HEIC needs pillow-heif: pip install 'codetr[heic]'" if heif else ""


def without_suffix(file: str) -> str:
    """A path without the suffix of an image or annotation file; other suffixes are kept."""
    path = PurePosixPath(file)
    known = is_image(path) or path.suffix.lower() in (".txt", ".xml")
    return str(path.with_suffix("")) if known else file


def counted_suffixes(files: Iterable[str]) -> str:
    """``3 files (.heic 2, .txt 1)``, the most frequent first; empty for no files."""
    counts = Counter(PurePosixPath(file).suffix.lower() or "without suffix" for file in files)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kinds = ", ".join(f"{suffix} {count}" for suffix, count in ordered)
    return f"{counts.total()} files ({kinds})" if counts else ""


Normalise = Callable[[str], str]
"""A normalisation of names: names are considered the same if it makes them equal."""


def _as_written(name: str) -> str:
    return name


def _composed(name: str) -> str:
    """With composed accents (macOS decomposes them) and ``/`` instead of Windows' ``\\``."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _caseless(name: str) -> str:
    return unicodedata.normalize("NFC", _composed(name).casefold())


def _unquoted(name: str) -> str:
    """Case-insensitive, and with the %-encoding of URLs decoded."""
    return _caseless(unquote(name))


def as_stem(name: str) -> str:
    """The most tolerant normalisation, which also removes the suffix."""
    return without_suffix(_unquoted(name))


SPELLINGS: tuple[Normalise, ...] = (_as_written, _composed, _caseless, _unquoted)
"""In order of increasing tolerance."""
COMPARISONS: tuple[Normalise, ...] = (*SPELLINGS, as_stem)


class FileIndex:
    """Finds ``files`` (POSIX paths relative to a root) by inexact names.

    Comparisons are tried with increasing tolerance: exact; ignoring Unicode composition (NFC, NFD)
    and ``\\`` versus ``/``; ignoring case; decoding %-encoding; ignoring the suffix. All files of
    the first comparison with matches are returned: the name is unambiguous if there is one.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self.files = tuple(files)
        self._paths: dict[Normalise, Mapping[str, list[str]]] = {}
        self._names: dict[Normalise, Mapping[str, list[str]]] = {}

    def at(self, path: str) -> list[str]:
        """The files at ``path``."""
        return next((found for way in COMPARISONS if (found := self._at(path, way))), [])

    def named(self, name: str) -> list[str]:
        """The files whose path ends with ``name`` (a path, maybe of another machine, or a URL), or
        else those in any folder with the same last component.
        """
        name = _path_of(name)
        for ways in (SPELLINGS, (as_stem,)):
            for find in (self._ending, self._called):
                for way in ways:
                    found = find(name, way)
                    if found:
                        return found
        return []

    def _at(self, path: str, way: Normalise) -> list[str]:
        if way not in self._paths:
            self._paths[way] = _by(way, self.files)
        return self._paths[way].get(way(path), [])

    def _called(self, name: str, way: Normalise) -> list[str]:
        if way not in self._names:
            self._names[way] = _by(lambda file: _last(way(file)), self.files)
        return self._names[way].get(_last(way(name)), [])

    def _ending(self, name: str, way: Normalise) -> list[str]:
        end = way(name)
        return [f for f in self._called(name, way) if f"/{way(f)}".endswith(f"/{end}")]


def _by(key: Normalise, files: Iterable[str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for file in files:
        found[key(file)].append(file)
    return found


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _path_of(name: str) -> str:
    """``name``, if it is a URL of an image, without its query."""
    path = name.partition("?")[0]
    return path if "://" in name and is_image(path) else name


def resolve_file_names(names: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Resolve ``names`` (relative to ``folder``) to existing files.

    A name without an exact match is resolved to the image that ``FileIndex`` finds at that path, or
    else in ``folder`` itself under its last component, if it is unique and no other name resolves
    to it. Such matches are logged, as are ambiguous names; ambiguous names and names without a
    match are returned unchanged.
    """
    homes = {name.rpartition("/")[0] for name in names}
    there = {f"{home}/{file}" if home else file for home in homes for file in _list(folder / home)}
    missing = [n for n in dict.fromkeys(names) if n not in there and not os.path.isfile(folder / n)]
    if not missing:
        return tuple(names)
    taken = set(names)
    near = FileIndex(file for file in _walk(folder) if file not in taken and is_image(file))
    hits = {n: near.at(n) or near.at(_last(_composed(_path_of(n)))) for n in missing}
    claims = Counter(files[0] for files in hits.values() if len(files) == 1)
    found = {n: f[0] for n, f in hits.items() if len(f) == 1 and claims[f[0]] == 1}
    unclear = [n for n, files in hits.items() if files and n not in found]
    if unclear:
        log.warning(
            "%s: %d image names are ambiguous or match the file of another name: the first is %s, "
            "which could be %s",
            *(folder, len(unclear), unclear[0], " or ".join(sorted(hits[unclear[0]])[:2])),
        )
    for name, file in list(found.items())[:1]:
        log.info(
            "%s: %d of %d image files have other names on disk, the first is %s for %s",
            *(folder, len(found), len(names), file, name),
        )
    return tuple(found.get(name, name) for name in names)


def _list(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):  # missing, or not a valid name
        return []


def _walk(folder: Path) -> Iterator[str]:
    """All files below ``folder``, relative to it."""
    for home, _, files in os.walk(folder):
        for file in files:
            yield Path(home, file).relative_to(folder).as_posix()
