"""Detection of tensor files that declare more data than they hold, before they are read into
memory.

A few bytes can declare gigabytes: by compressed members of an archive, members that share their
bytes, or expanded tensors (stride 0). Such files are rejected. Of these, ``torch.save`` writes only
expanded tensors: see ``materialised``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr.errors import UserError

MOST_HEADER = 2**24
"""Largest header of a .safetensors file in bytes; ours have 0.3 million."""
MOST_TEXT = 2**22
"""Largest metadata of a file in characters; ours have 0.1 million."""
_LENGTH = 8


class Inflated(ValueError):
    """A file declares more than it holds."""


def require_stored(archive: zipfile.ZipFile, size: int) -> None:
    """Raise Inflated if members of an archive of ``size`` bytes are compressed or together larger
    than the archive.
    """
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise Inflated("its members are compressed, as torch.save never does")
    declared = sum(member.file_size for member in members)
    if declared > size:
        raise Inflated(f"it declares {declared} bytes, but has {size}")


def require_archive(path: Path) -> None:
    """``require_stored`` for a file that is an archive; other files are not checked."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            require_stored(archive, path.stat().st_size)


def require_held(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise Inflated for a tensor with more elements than its storage."""
    for name, tensor in tensors:
        if tensor.numel() > _held(tensor):
            raise Inflated(
                f"'{name}' has {tensor.numel()} numbers, of which {_held(tensor)} are there"
            )


def _held(tensor: Tensor) -> int:
    """The number of elements in the storage; sparse tensors are not checked."""
    if tensor.layout is not torch.strided:
        return tensor.numel()
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def materialised(value: Any) -> Any:
    """``value`` for ``torch.save``: expanded tensors (stride 0) become contiguous, at any depth of
    dictionaries, lists and tuples. Containers without any are returned unchanged.
    """
    if isinstance(value, Tensor):
        return value.contiguous() if value.numel() > _held(value) else value
    if isinstance(value, dict):
        parts = {key: materialised(part) for key, part in value.items()}
        if all(parts[key] is part for key, part in value.items()):
            return value
        copied = copy(value)  # keeps attributes: a state_dict has the versions of its modules
        copied.update(parts)
        return copied
    if isinstance(value, list | tuple):
        items = [materialised(part) for part in value]
        same = all(item is part for item, part in zip(items, value, strict=True))
        return value if same else type(value)(items)
    return value


def require_header(path: Path) -> None:
    """Raise UserError for a .safetensors file whose header exceeds ``MOST_HEADER``."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
    if length > MOST_HEADER:
        raise UserError(
            f"{path}: not a readable safetensors file (a header of {length} bytes, longer than any "
            "model's): download it again"
        )
