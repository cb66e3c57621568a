"""Annotation files derived from the user's, which are kept in a separate folder."""

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
    """The JSON content of an annotation file. Raises UserError if it is missing or invalid."""
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
    """Write ``content``, derived from the file ``source``, below ``folder``, and return its path,
    whose name contains a hash of the content. Writing is atomic, also with concurrent processes.
    Raises UserError if it fails.
    """
    text = json.dumps(content).encode()
    stem = re.sub(r"[^\w.-]", "_", source.stem) or "annotations"
    path = folder / f"{stem}-{hashlib.sha256(text).hexdigest()[:12]}.json"
    if not path.is_file():
        try:
            _write(path, text)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}): free some space, or "
                "choose another folder with data.derived=FOLDER"
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
