"""Files of tensors that say more than they hold: found before anything is read into memory.

A few bytes can stand for gigabytes: compressed members of an archive, members that share their
bytes, tensors that repeat the same number (a stride of 0). A file is refused where what it declares
is larger than it is. ``torch.save`` writes none of these but the last: see ``materialised``.
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
"""Bytes of names and shapes at the beginning of a .safetensors file; ours have 0.3 million."""
MOST_TEXT = 2**22
"""Limit of characters of a file's metadata; ours have 0.1 million."""
_LENGTH = 8


class Inflated(ValueError):
    """A file declares more than it holds."""


def require_stored(archive: zipfile.ZipFile, size: int) -> None:
    """Raise Inflated where members of an archive of ``size`` bytes are compressed, or are larger
    than it altogether.
    """
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise Inflated("its members are compressed, as torch.save never does")
    declared = sum(member.file_size for member in members)
    if declared > size:
        raise Inflated(f"it declares {declared} bytes, but has {size}")


def require_archive(path: Path) -> None:
    """Raise Inflated for an archive as ``require_stored`` does; other files are left to others."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            require_stored(archive, path.stat().st_size)


def require_held(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise Inflated for a tensor with more numbers than its memory holds."""
    for name, tensor in tensors:
        if tensor.numel() > _held(tensor):
            raise Inflated(
                f"'{name}' has {tensor.numel()} numbers, of which {_held(tensor)} are there"
            )


def _held(tensor: Tensor) -> int:
    """How many numbers are there; of sparse tensors, which stay sparse, any."""
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
        copied = copy(value)  # with its attributes: an OrderedDict of weights has versions
        copied.update(parts)
        return copied
    if isinstance(value, list | tuple):
        items = [materialised(part) for part in value]
        same = all(item is part for item, part in zip(items, value, strict=True))
        return value if same else type(value)(items)
    return value


def require_header(path: Path) -> None:
    """Raise UserError for a .safetensors file whose header is longer than names and shapes are."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
    if length > MOST_HEADER:
        raise UserError(
            f"{path}: not a readable safetensors file (a header of {length} bytes, longer than any "
            "model's): download it again"
        )
