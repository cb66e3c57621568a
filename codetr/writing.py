"""Atomic writing of files: an interruption or a full disk never damages the earlier version."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import IO, Any

from codetr.errors import UserError

PART = ".part"
"""Suffix of a file that is being written."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that replaces ``path`` when it is complete and on disk.

    It is written beside ``path``, since a file can be replaced atomically only within a file
    system. Raises UserError if it cannot be written. After any error ``path`` is unchanged. A link
    is replaced, since a foreign folder may have links to anywhere. A device or a pipe, such as
    /dev/null, is not replaced but written to.
    """
    part = path.with_name(path.name + PART)
    with writable(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            with _opened(path) as file:
                yield file
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _opened(part) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Replace ``path``, or what it links to (as /dev/stdout does), by ``text`` in UTF-8; ``errors``
    as for ``str.encode``. Raises UserError as ``replacing``.
    """
    linked = path.is_symlink() and path.is_file()
    with replacing(path.resolve() if linked else path) as file:
        file.write(text.encode("utf-8", errors))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder next to ``folder``, which is renamed to it at the end, unless another
    process has already written the same content there, or removed after an error.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Convert an OSError of writing ``path`` to a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}), but earlier files are whole: "
            "make room or the folder writable, and give the same command again, training with "
            "ckpt_path=last"
        ) from None


def remove_parts(folder: Path) -> None:
    """Remove unfinished files of a killed process from ``folder``."""
    for part in folder.glob(f"*{PART}"):
        with writable(part):
            part.unlink(missing_ok=True)


class _Raw(FileIO):
    """A file that stores its first write error."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to. Raises the original OSError of a failed write instead of an error that
    the writer makes of it, as ``torch.save`` does.
    """
    raw = _Raw(path, "wb")
    try:
        with BufferedWriter(raw) as file:
            yield file
    except Exception:
        if raw.error is not None:
            raise raw.error from None
        raise


def _sync_folder(folder: Path) -> None:
    """Flush the new name to disk, if the file system supports it."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
