"""Reading an untrusted ``.pth`` file without running any code that it refers to.

A ``.pth`` file is a pickle, which is a program: it can name any function and have it called.
``torch.load(weights_only=True)`` allows little more than tensors and thereby rejects the official
checkpoints, whose bookkeeping contains NumPy numbers and classes of mmcv and mmengine. This reader
builds tensors, plain containers, and ``Inert`` objects in place of everything else; no name in the
file is ever imported or called. A name that belongs neither to tensors nor to known bookkeeping
(``os.system``, ``builtins.eval``) causes the whole file to be rejected, since no checkpoint needs
it.

Both layouts of ``torch.save`` are supported: the zip archive, and the legacy one, which
mmdetection's publishing script writes.
"""

from __future__ import annotations

import math
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from codetr.errors import UserError, first_line
from codetr.torch_files import Inflated, require_stored

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Element types by their names in files of ``torch.save``."""

BOOKKEEPING = frozenset(
    {"mmcv", "mmengine", "mmdet", "projects", "numpy", "torch", "argparse", "addict", "datetime"}
    | {"collections", "copyreg", "copy_reg", "pathlib", "_codecs"}
)
"""Packages whose objects may accompany the weights: they become ``Inert``."""

BUILTINS = frozenset(
    {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int"}
    | {"list", "object", "range", "set", "slice", "str", "tuple", "xrange"}
)
"""The same for built-in names. (Methods are pickled by ``getattr``.)"""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


class Inert:
    """A placeholder for any object other than weights: accepts all that a pickle does to it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:  # noqa: D102
        return super().__new__(cls)

    def _ignore(self, *args: Any, **kwargs: Any) -> Inert:
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = update = _ignore  # type: ignore[assignment]


class _Refused(pickle.UnpicklingError):
    """The file names something that no checkpoint needs."""


class _Reader(pickle.Unpickler):
    """``storage(key, dtype, count)`` returns the 1-d storage that tensors are views of."""

    def __init__(self, file: IO[bytes], storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Our replacement for what the file names. Functions are created on every call, so that a
        pickle which sets attributes on them changes nothing that outlives it.
        """
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _view(storage, offset, size, stride)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda value, *_: value
        if (module, name) == ("torch", "Size"):
            return lambda sizes: tuple(sizes)
        if (module, name) == ("collections", "OrderedDict"):
            return lambda *items: OrderedDict(*items)
        known = module.split(".")[0] in BOOKKEEPING
        if known or (module in ("builtins", "__builtin__") and name in BUILTINS):
            return Inert
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage that the pickle refers to."""
        kind, dtype, key, _device, count, *view = pid
        whole = not any(part is not None for part in view)
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not whole:
            raise pickle.UnpicklingError(f"an object of kind '{kind}' that is not a plain tensor")
        return self.storage(str(key), dtype, int(count))


def read_pickled(path: Path) -> Any:
    """The content of a file written by ``torch.save``, on the CPU: tensors, strings, numbers,
    tuples, lists, dicts, and ``Inert`` in place of all other objects.

    Raises UserError for a file that is missing, damaged, in another format, or refers to names that
    no checkpoint needs.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such checkpoint file")
    try:
        with path.open("rb") as file:
            return _read_zip(file) if zipfile.is_zipfile(path) else _read_legacy(file)
    except _Refused as error:
        raise UserError(
            f"{path}: refers to '{error}', which no checkpoint needs: it may have been made to "
            "run code, and was not read further. Get it from its publisher, or as .safetensors"
        ) from None
    except Exception as error:  # foreign bytes may raise any exception
        reason = first_line(error)
        raise UserError(
            f"{path}: not readable as a checkpoint ({reason}): it may be truncated or in another "
            "format; download it again, or as .safetensors"
        ) from error


def _read_zip(file: IO[bytes]) -> Any:
    """Read a zip archive of ``NAME/data.pkl`` and one member ``NAME/data/KEY`` per storage."""
    with zipfile.ZipFile(file) as archive:
        require_stored(archive, _size(file))
        members = set(archive.namelist())
        found = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            raise pickle.UnpicklingError("a zip file that torch.save did not write")
        folder = found[0].removesuffix("data.pkl")
        order = archive.read(folder + "byteorder") if folder + "byteorder" in members else b"little"
        if order.decode() != sys.byteorder:
            raise pickle.UnpicklingError("numbers in the byte order of another machine")
        storages: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in storages:
                storages[key] = _numbers(archive.read(f"{folder}data/{key}"), dtype, count)
            return storages[key]

        with archive.open(found[0]) as content:
            return _Reader(content, storage).load()


def _read_legacy(file: IO[bytes]) -> Any:
    """Read five pickles (magic number, version, system, content, keys), then the storages
    by key.
    """

    def none_yet(key: str, dtype: torch.dtype, count: int) -> Tensor:
        raise pickle.UnpicklingError("a tensor in the header")

    storages: dict[str, Tensor] = {}

    declared, size = 0, _size(file)

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal declared
        if key not in storages:
            declared += count * dtype.itemsize
            if not 0 <= declared <= size:
                raise Inflated(f"it declares {declared} bytes of numbers, but has {size}")
            storages[key] = torch.empty(count, dtype=dtype)
        return storages[key]

    magic, version, system = (_Reader(file, none_yet).load() for _ in range(3))
    if (magic, version) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise pickle.UnpicklingError("torch.save did not write it")
    if system["little_endian"] != (sys.byteorder == "little"):
        raise pickle.UnpicklingError("numbers in the byte order of another machine")
    content = _Reader(file, storage).load()
    keys = _Reader(file, none_yet).load()
    if set(keys) != storages.keys():
        raise pickle.UnpicklingError("truncated")
    for key in keys:
        target = storages[key]
        count = int.from_bytes(file.read(8), sys.byteorder)
        if count != len(target):
            raise pickle.UnpicklingError("truncated")
        target.copy_(_numbers(file.read(count * target.element_size()), target.dtype, count))
    return content


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _view(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """The tensor as a view of its storage, without repeated elements."""
    if math.prod(size) > len(storage):
        raise Inflated(f"a tensor of {math.prod(size)} numbers, of which {len(storage)} are there")
    return torch.as_strided(storage, size, stride, offset)


def _numbers(data: bytes, dtype: torch.dtype, count: int) -> Tensor:
    """A tensor (count,) of ``dtype`` from raw bytes."""
    if len(data) != count * dtype.itemsize:
        raise pickle.UnpicklingError("truncated")
    return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)
