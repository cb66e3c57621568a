"""The options of a benchmark: a frozen dataclass, each field of which is an argument.

A benchmark ``NAME`` is a module ``tools.bench.NAME`` with ``Options``, a subclass of ``Common``
or of ``OnDevice``, and ``run(options) -> tuple[Table, ...]``. Field ``some_name`` is
``--some-name``.
"""

from __future__ import annotations

import argparse
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from codetr.errors import UserError


def option(default: Any, help: str) -> Any:
    """A field with a default and a line for ``--help``."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every benchmark takes."""

    repeats: int = option(5, "turns that count, after one to warm up")
    threads: int | None = option(None, "of PyTorch on the CPU; its own choice if not given")

    @property
    def torch_device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu")

    def check(self) -> None:
        """Raise UserError for what this machine or this benchmark cannot do."""
        if self.repeats < 1:
            raise UserError(f"--repeats {self.repeats}: give 1 or more")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads {self.threads}: give 1 or more")


@dataclass(frozen=True, kw_only=True)
class OnDevice(Common):
    """What every benchmark takes that also runs on a GPU."""

    device: Literal["cpu", "cuda"] = option("cpu", "where it runs")

    @property
    def torch_device(self) -> torch.device:
        """``device``, for PyTorch."""
        return torch.device(self.device)

    def check(self) -> None:
        """See ``Common``."""
        super().check()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch finds no CUDA device here: give --device cpu")


AnyOptions = TypeVar("AnyOptions", bound=Common)


def add_arguments(parser: argparse.ArgumentParser, options: type[Common]) -> None:
    """An argument for each field: int, float, str, Path, bool, Literal, tuple[one of these, ...],
    or one of these or None.
    """
    kinds = get_type_hints(options)
    for entry in fields(options):
        assert entry.default is not MISSING, f"{entry.name} has no default"
        parser.add_argument(
            f"--{entry.name.replace('_', '-')}",
            default=entry.default,
            help=f"{entry.metadata.get('help', '')} ({_shown(entry.default)})",
            **_parsing(kinds[entry.name]),
        )


def from_arguments(options: type[AnyOptions], parsed: argparse.Namespace) -> AnyOptions:
    """The options that were parsed."""
    values: dict[str, Any] = {entry.name: getattr(parsed, entry.name) for entry in fields(options)}
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    return options(**values)


def _parsing(kind: Any) -> dict[str, Any]:
    """Arguments of ``add_argument`` that read a value of this type."""
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if isinstance(kind, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
        return _parsing(kind)
    if get_origin(kind) is tuple:
        return {**_parsing(get_args(kind)[0]), "nargs": "+"}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": kind}


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return "not given" if default is None else str(default)
