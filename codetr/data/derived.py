"""Annotation files derived from a user's, and kept in another folder than those."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from codetr.errors import UserError
from codetr.json_text import parse_json


def read_content(path: Path) -> Any:
    """The value of an annotation file. Raises UserError where it is missing or broken."""
    if not os.path.isdir(path.parent):
        raise UserError(
            f"folder {path.parent} of annotation file {path.name} does not exist: set data.root "
            "to the folder of your data"
        )
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read annotation file {path} ({error.strerror}): check data.root and the "
            "annotation paths under data.source"
        ) from None
    return parse_json(text, f"annotation file {path}")


def write_derived(folder: Path, source: Path, content: Any) -> Path:
    """Write ``content``, made of the file ``source``, below ``folder``; its path, named by a hash
    of what it holds. The file is whole or absent, whoever else writes it.
    Raises UserError where it cannot be written.
    """
    text = json.dumps(content).encode()
    stem = re.sub(r"[^\w.-]", "_", source.stem) or "annotations"
    path = folder / f"{stem}-{hashlib.sha256(text).hexdigest()[:12]}.json"
    if not path.is_file():
        try:
            _write(path, text)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}): make room, or choose "
                "another folder with data.derived=FOLDER"
            ) from None
    return path


def _write(path: Path, text: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
