"""Local files of zoo entries: downloaded once and verified on every use.

Files are in ``$CODETR_HOME/zoo`` (those of the Hub in its own cache). The SHA-256 of each is
recorded in that folder as ``FILE.sha256``.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from filelock import FileLock
from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HFValidationError
from torch.hub import download_url_to_file

from codetr.checkpoints.zoo import ZOO, ByHand, HubFile, Url, ZooEntry, zoo_folder
from codetr.errors import UserError, first_line

TIMEOUT = 10.0
"""Timeout of servers in seconds."""


def fetched_file(entry: ZooEntry, trust: bool = False) -> Path:
    """The local file of ``entry``, downloaded with a progress bar if it is missing; concurrent
    processes download it once.

    Raises UserError if it cannot be downloaded, is not the published one, or has changed since its
    first use; and for an entry that is pinned neither by a revision nor by a hash, unless
    ``trust``.
    """
    folder = zoo_folder()
    path, record = folder / entry.file, folder / f"{entry.file}.sha256"
    try:
        if path.is_file() and record.is_file():  # nothing to write: the folder may be read-only
            _verify(entry, path, record)
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{entry.file}.lock"):
            found = path if path.is_file() else _fetch(entry, path, trust)
            digest = _verify(entry, found, record)
            if not record.is_file():
                part = record.with_name(f"{record.name}.part")
                part.write_text(f"{digest}  {found.name}\n", encoding="utf-8")
                part.replace(record)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be used for published weights ({error}): set the environment "
            "variable CODETR_HOME to another folder"
        ) from None
    return found


def local_path(entry: ZooEntry) -> Path | None:
    """The path of ``entry``'s file if it exists on this machine; its content is not verified."""
    path = zoo_folder() / entry.file
    if path.is_file():
        return path
    return _in_hub_cache(entry.place) if isinstance(entry.place, HubFile) else None


def _verify(entry: ZooEntry, path: Path, record: Path) -> str:
    """The SHA-256 of a file. Raises UserError if it differs from the published one, or from that of
    the file's first use.
    """
    digest = _digest(path)
    if difference := _difference(entry, digest):
        raise UserError(f"{path}: is not the published file: {difference}: get it again")
    if record.is_file() and record.read_text(encoding="utf-8").split()[:1] != [digest]:
        raise UserError(
            f"{path}: has changed since its first use: its SHA-256 is not the one in {record}: "
            "delete both and get it again"
        )
    return digest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _difference(entry: ZooEntry, digest: str) -> str:
    """How a SHA-256 differs from the known digits of the published file's; empty if it does not."""
    known = entry.sha256 or ""
    if digest.startswith(known):
        return ""
    return f"its SHA-256 begins with {digest[: len(known)]} instead of {known}"


def _fetch(entry: ZooEntry, path: Path, trust: bool) -> Path:
    """Download the file, to ``path`` unless it goes to the Hub's cache."""
    place = entry.place
    if isinstance(place, ByHand):
        raise UserError(
            f"{ZOO}{entry.name}: cannot be downloaded automatically: get it from {place.page} and "
            f"save it as {path}"
        )
    if isinstance(place, HubFile):
        cached = _in_hub_cache(place)
        if cached is not None:
            return cached
        if not entry.pinned and not trust:
            raise UserError(
                f"{ZOO}{entry.name}: its file in {place.repo} on the Hub is pinned neither by a "
                f"revision nor by a hash: give trust=true, or save the file as {path}"
            )
        return _from_hub(entry.name, place, path)
    _download(entry, place, path)
    return path


def _in_hub_cache(place: HubFile) -> Path | None:
    """The path of the file in the Hub's own cache, which other programs share; None if it is not
    there.
    """
    try:
        found = try_to_load_from_cache(place.repo, place.file, revision=place.revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _from_hub(name: str, place: HubFile, path: Path) -> Path:
    url = hf_hub_url(place.repo, place.file, revision=place.revision)
    try:
        get_hf_file_metadata(url, timeout=TIMEOUT)  # the download itself retries for half a minute
        return Path(hf_hub_download(place.repo, place.file, revision=place.revision))
    except Exception as error:  # includes those of the HTTP client, which depends on the release
        raise _download_failed(name, url, error, path) from None


def _download(entry: ZooEntry, place: Url, path: Path) -> None:
    """Download to ``path``, which exists only if the download was complete."""
    part = path.with_name(f"{path.name}.part")
    try:
        with _timeout(TIMEOUT):
            with urlopen(place.url) as answer:  # fails fast without a network; has the size
                size = answer.headers.get("Content-Length")
            download_url_to_file(place.url, str(part))
        got = part.stat().st_size
        if size is not None and got != int(size):
            raise OSError(f"the connection ended after {got} of {size} bytes")
        if difference := _difference(entry, _digest(part)):
            raise OSError(difference)
        part.replace(path)
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it owns the connection to the server
        raise _download_failed(entry.name, place.url, error, path) from None
    finally:
        part.unlink(missing_ok=True)


def _download_failed(name: str, where: str, error: Exception, path: Path) -> UserError:
    """The error of a failed download."""
    plain = isinstance(error, URLError) and not isinstance(error, HTTPError)
    reason = first_line(getattr(error, "reason", error) if plain else error)
    return UserError(
        f"{ZOO}{name}: cannot be downloaded from {where} ({reason}): download it elsewhere and "
        f"save it as {path}"
    )


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Set the timeout of sockets opened in the block; by default they wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
