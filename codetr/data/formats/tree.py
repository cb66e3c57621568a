"""The files of a data folder, listed once."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from codetr.data.files import FileIndex, is_image
from codetr.errors import UserError

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Splits by words in folder and file names."""

SPARE = {word: word for word in ("dev", "devel", "minival", "eval")}
"""Words that name a split if no other word does. It is used for validation if there is no val."""

ALL_SPLITS = SPLITS | SPARE

_LARGEST = 2**30  # bytes; reading larger annotation files would take too long


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The regular ``files`` below ``root``: POSIX paths relative to it, sorted, without hidden
    ones. ``fingerprint`` is a hash of their names, sizes and modification times.
    """

    root: Path
    files: tuple[str, ...]
    fingerprint: str

    @cached_property
    def images(self) -> tuple[str, ...]:
        """Files that are images by their suffix."""
        return tuple(file for file in self.files if is_image(file))

    @cached_property
    def image_index(self) -> FileIndex:
        """An index to find ``images`` by inexact names."""
        return FileIndex(self.images)

    @cached_property
    def members(self) -> frozenset[str]:
        """``files`` as a set."""
        return frozenset(self.files)

    def of_type(self, *suffixes: str) -> list[str]:
        """Files with one of ``suffixes`` (lower case, with the dot)."""
        return [file for file in self.files if suffix(file) in suffixes]

    def read(self, file: str) -> bytes:
        """The content of a file. Raises UserError if it cannot be read."""
        path = self.root / file
        try:
            if path.stat().st_size > _LARGEST:
                raise UserError(f"{path} is larger than 1 GiB: divide it, or use data=coco")
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}): check the file") from None


def list_files(root: Path, exclude: Path | None = None) -> Tree:
    """List a data folder, following symbolic links, without the folder ``exclude``.

    Raises UserError if the folder does not exist.
    """
    if not os.path.isdir(root):
        raise UserError(f"folder {root} does not exist: set data.root to the folder of your data")
    files: list[str] = []
    digest = hashlib.sha256()
    for name, status in sorted(_walk(root, exclude), key=lambda entry: entry[0]):
        if stat.S_ISREG(status.st_mode):  # reading a pipe would block
            files.append(name)
            digest.update(
                f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="replace")
            )
    return Tree(root=root, files=tuple(files), fingerprint=digest.hexdigest())


def _walk(root: Path, exclude: Path | None) -> Iterator[tuple[str, os.stat_result]]:
    """Name (relative to the root) and status of every file that is not hidden."""
    seen = {os.path.realpath(exclude)} if exclude else set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(f for f in folders if not _is_hidden(f))
        if real in seen:
            continue  # excluded, or a symbolic link to a visited folder
        seen.add(real)
        for name in names:
            path = os.path.join(folder, name)
            if not _is_hidden(name) and os.path.exists(path):
                yield Path(os.path.relpath(path, root)).as_posix(), os.stat(path)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def suffix(file: str) -> str:
    """The suffix in lower case."""
    return PurePosixPath(file).suffix.lower()


def split_of_name(name: str) -> str | None:
    """The split in a file or folder name, such as train in ``instances_train2017``. None if there
    are none or several.
    """
    return _named(name, SPLITS) or _named(name, SPARE)


def split_of_folders(file: str) -> str | None:
    """The split in the names of a file's folders, the innermost one if there are several."""
    folders = PurePosixPath(file).parts[-2::-1]
    found = (_named(part, words) for words in (SPLITS, SPARE) for part in folders)
    return next((split for split in found if split), None)


def _named(name: str, words: Mapping[str, str]) -> str | None:
    found = {words[word] for word in re.findall(r"[a-z]+", name.lower()) if word in words}
    return found.pop() if len(found) == 1 else None
