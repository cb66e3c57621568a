"""The entries of the zoo as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from rich import box
from rich.table import Table

from codetr.checkpoints.zoo import ByHand, HubFile, ZooEntry
from codetr.checkpoints.zoo_files import local_path


def zoo_tables(entries: Iterable[ZooEntry]) -> Iterator[Table]:
    """A table per publisher with a row per entry, sorted by AP: name, published box AP in percent,
    size in MB (blank if unknown), and whether the file is here or how it is obtained.
    """
    ordered = sorted(entries, key=lambda entry: (entry.source, entry.ap or 0.0, entry.name))
    for source, group in groupby(ordered, key=lambda entry: entry.source):
        table = Table(title=source, title_justify="left", box=box.SIMPLE, pad_edge=False)
        table.add_column("checkpoint=zoo:...", no_wrap=True)
        table.add_column("AP", justify="right", no_wrap=True)
        table.add_column("MB", justify="right", no_wrap=True)
        table.add_column("file", no_wrap=True)
        for entry in group:
            published = "" if entry.ap is None else f"{entry.ap:.1f}"
            table.add_row(entry.name, published, _size(entry), _state(entry))
        yield table


def _size(entry: ZooEntry) -> str:
    path = local_path(entry)
    size = entry.bytes if path is None else path.stat().st_size
    return "" if size is None else f"{size / 1e6:.0f}"


def _state(entry: ZooEntry) -> str:
    if local_path(entry) is not None:
        return "here"
    if isinstance(entry.place, ByHand):
        return "by hand"
    if not entry.pinned:
        return "trust=true"
    return "Hub" if isinstance(entry.place, HubFile) else "download"
