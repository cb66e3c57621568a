"""The entries of the zoo as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from rich import box
from rich.table import Table

from codetr.checkpoints.zoo import ByHand, HubFile, ZooEntry
from codetr.checkpoints.zoo_files import local_path

LEGEND = """\
here        the file has been fetched
download    fetched from its publisher at the first use
Hub         fetched from the Hugging Face Hub at the first use
trust=true  fetched with that setting alone: no revision or hash pins its content
by hand     codetr-zoo checkpoint=zoo:NAME says where to get it and where to save it"""
"""What the column ``file`` says."""


def zoo_tables(entries: Iterable[ZooEntry]) -> Iterator[Table]:
    """A table per publisher and license with a row per entry, sorted by AP: name, published box AP
    in percent, size in MB (blank if unknown), and a word of ``LEGEND`` on its file.
    """
    ordered = sorted(entries, key=lambda entry: (*_publisher(entry), entry.ap or 0.0, entry.name))
    for publisher, group in groupby(ordered, key=_publisher):
        title = "\n".join(filter(None, publisher))
        table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
        table.add_column("checkpoint=zoo:...", no_wrap=True)
        table.add_column("AP", justify="right", no_wrap=True)
        table.add_column("MB", justify="right", no_wrap=True)
        table.add_column("file", no_wrap=True)
        for entry in group:
            published = "" if entry.ap is None else f"{entry.ap:.1f}"
            table.add_row(entry.name, published, _size(entry), _state(entry))
        yield table


def _publisher(entry: ZooEntry) -> tuple[str, str]:
    return entry.source, entry.license


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
