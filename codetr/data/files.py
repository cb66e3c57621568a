"""Which files are images, and which file is meant by a name."""

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
"""Formats that Pillow recognises and that are no images here: programs, which another program would
have to run, videos, brushes and pointers, and those whose suffixes are mostly others' (``.pcd``:
clouds of points)."""

_HEIF = (".heic", ".heif", ".hif")
_OF_OTHERS = frozenset(
    {*_HEIF, ".avif", ".avifs", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
    | {".raf", ".orf", ".rw2", ".dcm", ".jp2", ".webp", ".psd", ".eps"}
)
"""Of pictures that not every Pillow decodes."""


@cache
def register_plugins() -> None:
    """Let Pillow open HEIC in this process, where the package for it is installed."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of all formats that the installed Pillow decodes, in lower case with the dot."""
    register_plugins()
    suffixes = Image.registered_extensions()  # loads all plugins
    return frozenset(suffix for suffix, kind in suffixes.items() if _is_decoded(kind))


def _is_decoded(kind: str) -> bool:
    if kind not in Image.OPEN or kind in _NO_PICTURES:
        return False
    factory = Image.OPEN[kind][0]
    # Stubs only recognise their files.
    return not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile))


def is_image(file: str | PurePosixPath) -> bool:
    """Whether a file is an image by its suffix."""
    return PurePosixPath(file).suffix.lower() in image_suffixes()


def is_foreign(file: str) -> bool:
    """Whether a file is a picture that the installed Pillow does not decode."""
    return PurePosixPath(file).suffix.lower() in _OF_OTHERS and not is_image(file)


def missing_plugin(*files: str) -> str:
    """What to install to read such of ``files`` as the installed Pillow does not decode; empty
    where that is not known.
    """
    heif = any(PurePosixPath(f).suffix.lower() in _HEIF and not is_image(f) for f in files)
    return "HEIC needs pillow-heif: pip install 'codetr[heic]'" if heif else ""


def without_suffix(file: str) -> str:
    """A path without the suffix of an image or of an annotation; other dots are part of names."""
    path = PurePosixPath(file)
    known = is_image(path) or path.suffix.lower() in (".txt", ".xml")
    return str(path.with_suffix("")) if known else file


def _frequent(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def counted_suffixes(files: Iterable[str]) -> str:
    """``3 files (.heic 2, .txt 1)``, the most frequent first; empty where there are none."""
    counts = Counter(PurePosixPath(file).suffix.lower() or "without suffix" for file in files)
    kinds = ", ".join(
        f"{suffix} {count}" for suffix, count in sorted(counts.items(), key=_frequent)
    )
    return f"{counts.total()} files ({kinds})" if counts else ""


Way = Callable[[str], str]
"""Names mean the same file where this makes them equal."""


def _as_written(name: str) -> str:
    return name


def _composed(name: str) -> str:
    """Accents as macOS decomposes them or not; folders as Windows divides them or not."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _caseless(name: str) -> str:
    return unicodedata.normalize("NFC", _composed(name).casefold())


def _unquoted(name: str) -> str:
    """Without the %-encoding of URLs."""
    return _caseless(unquote(name))


def as_stem(name: str) -> str:
    """A path in the most forgiving comparison: without suffix, too."""
    return without_suffix(_unquoted(name))


SPELLINGS: tuple[Way, ...] = (_as_written, _composed, _caseless, _unquoted)
"""Each way forgives more than those before it."""
WAYS: tuple[Way, ...] = (*SPELLINGS, as_stem)


class FileIndex:
    """Finds ``files`` (posix paths relative to a root) by names that are not quite theirs.

    The first way of comparing that finds any decides: as written; Unicode composed (NFC) or
    decomposed (NFD), ``\\`` or ``/``; upper or lower case; %-encoded; another suffix. All files
    that it finds are returned: a name is understood where that is one.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self.files = tuple(files)
        self._paths: dict[Way, Mapping[str, list[str]]] = {}
        self._names: dict[Way, Mapping[str, list[str]]] = {}

    def at(self, path: str) -> list[str]:
        """The files at ``path``."""
        return next((found for way in WAYS if (found := self._at(path, way))), [])

    def named(self, name: str) -> list[str]:
        """The files whose path ends with ``name`` (a path, perhaps of another machine, or a URL),
        else those in any folder that are called as its last part.
        """
        name = _path_of(name)
        for ways in (SPELLINGS, (as_stem,)):
            for find in (self._ending, self._called):
                for way in ways:
                    found = find(name, way)
                    if found:
                        return found
        return []

    def _at(self, path: str, way: Way) -> list[str]:
        if way not in self._paths:
            self._paths[way] = _by(way, self.files)
        return self._paths[way].get(way(path), [])

    def _called(self, name: str, way: Way) -> list[str]:
        if way not in self._names:
            self._names[way] = _by(lambda file: _last(way(file)), self.files)
        return self._names[way].get(_last(way(name)), [])

    def _ending(self, name: str, way: Way) -> list[str]:
        end = way(name)
        return [f for f in self._called(name, way) if f"/{way(f)}".endswith(f"/{end}")]


def _by(key: Way, files: Iterable[str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for file in files:
        found[key(file)].append(file)
    return found


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _path_of(name: str) -> str:
    """``name`` without the query of a URL that names an image before it."""
    path = name.partition("?")[0]
    return path if "://" in name and is_image(path) else name


def found_names(names: Sequence[str], folder: Path) -> tuple[str, ...]:
    """The files below ``folder`` that ``names`` (relative to it) mean, as the disk calls them.

    A name that no file has as it is written means the one image that ``FileIndex`` finds at its
    place, or else in ``folder`` itself under its last part, unless another name means that one,
    too. Such matches are logged, as are ambiguous names; these, and names without a match, are
    returned unchanged.
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
            "%s: %d names of images could mean several files, or one that others mean, too: the "
            "first is %s, which could be %s",
            *(folder, len(unclear), unclear[0], " or ".join(sorted(hits[unclear[0]])[:2])),
        )
    for name, file in list(found.items())[:1]:
        log.info(
            "%s: %d of %d image files have other names on the disk, the first is %s for %s",
            *(folder, len(found), len(names), file, name),
        )
    return tuple(found.get(name, name) for name in names)


def _list(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):  # not there, or no name at all
        return []


def _walk(folder: Path) -> Iterator[str]:
    """All files below ``folder``, relative to it."""
    for home, _, files in os.walk(folder):
        for file in files:
            yield Path(home, file).relative_to(folder).as_posix()
