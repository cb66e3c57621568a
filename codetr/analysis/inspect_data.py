"""A page about a data set, to read before training on it: statistics, problems and pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import Progress

from codetr.analysis.data_facts import SplitFacts, gather_facts, shared_images
from codetr.analysis.data_plots import box_figure, class_figure, picture_grid
from codetr.data.annotations import CocoAnnotations
from codetr.data.box_formats import similar_names
from codetr.data.check import split_convention_error
from codetr.data.images import DEFAULT_RULES, PixelRules
from codetr.data.loading import load_split
from codetr.data.placement import AUTO
from codetr.data.sources import Split, Splits
from codetr.errors import UserError
from codetr.writing import write_text

_MOST_PROBLEMS = 1000  # lines in a page

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
    "color:#222}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.25rem .6rem;"
    "text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
    "code{background:#f3f3f3;padding:.1rem .3rem}"
)


@dataclass(frozen=True, kw_only=True)
class DataPage:
    """Content of the page. ``pictures``: a JPEG by split; the first row of a table is its head."""

    title: str
    remarks: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    classes: tuple[tuple[str, ...], ...]
    problems: tuple[str, ...]
    figures: Mapping[str, bytes]
    pictures: Mapping[str, bytes]


def inspect_data(
    title: str,
    splits: Splits,
    pictures: int = 16,
    boxes: str = AUTO,
    derived: Path = Path("data/converted"),
    rules: PixelRules = DEFAULT_RULES,
) -> DataPage:
    """Read both splits, decode every image, and compile the page.

    ``pictures`` images per split are drawn; for ``boxes`` and ``derived`` see ``load_split``, for
    ``rules`` see ``read_image``. Single annotations that cannot be used are listed as problems.
    Raises UserError if annotation files cannot be read.
    """
    if pictures < 0:
        raise UserError(f"shown={pictures}: give at least 0")
    named = {"train": splits.train, "val": splits.val}
    problems, remarks = list(splits.problems), list(splits.remarks)
    loaded: dict[str, CocoAnnotations] = {}
    for name in named:
        flaws: list[str] = []
        classes = loaded["train"].classes if loaded else None
        loaded[name] = load_split(
            splits, name, boxes, derived, classes=classes, flaws=flaws, notify=remarks.append
        )
        if splits.box_format == AUTO and (wrong := split_convention_error(loaded[name])):
            flaws.append(wrong)
        problems += [f"{name}: {line}" for line in flaws]
        if not loaded[name].usable.any():
            problems.append(f"{name}: has no usable box, which training refuses")
    problems += similar_names(loaded["train"].classes.names)
    facts = _gather(named, loaded, rules)
    problems += [f"{f.name}: {line}" for f in facts for line in f.problems]
    problems += shared_images(*facts)
    return DataPage(
        title=title,
        remarks=tuple(remarks),
        table=table(facts),
        classes=class_table(facts),
        problems=tuple(problems),
        figures={"Classes": class_figure(facts), "Boxes and images": box_figure(facts)},
        pictures={
            name: picture_grid(loaded[name], split.images, pictures, rules=rules)
            for name, split in named.items()
        },
    )


def _gather(
    splits: Mapping[str, Split], loaded: Mapping[str, CocoAnnotations], rules: PixelRules
) -> list[SplitFacts]:
    facts = []
    with Progress(transient=True) as progress:
        for name, split in splits.items():
            task = progress.add_task(f"reading {name} images", total=len(loaded[name]))
            facts.append(
                gather_facts(
                    name, loaded[name], split.images, partial(progress.advance, task), rules
                )
            )
    return facts


def table(facts: Sequence[SplitFacts]) -> tuple[tuple[str, ...], ...]:
    """Statistics with a column per split."""
    rows = {
        "images": [f"{f.images}" for f in facts],
        "images without boxes": [f"{f.images_without_boxes}" for f in facts],
        "boxes": [f"{f.boxes}" for f in facts],
        "ignored regions (crowds, difficult)": [f"{f.ignored}" for f in facts],
        "boxes per image: mean / most": [_mean_and_most(f.boxes_per_image) for f in facts],
        "image width: least / median / most": [_range(f.image_sizes[:, 0], "d") for f in facts],
        "image height": [_range(f.image_sizes[:, 1], "d") for f in facts],
        "box size: share of the image's side": [_range(f.sides, ".3f") for f in facts],
        "box width / height": [_range(f.aspects, ".2f") for f in facts],
    }
    heading = ("", *(f.name for f in facts))
    return (heading, *((name, *cells) for name, cells in rows.items()))


def class_table(facts: Sequence[SplitFacts]) -> tuple[tuple[str, ...], ...]:
    """Numbers of boxes by class, with a column per split."""
    names = dict.fromkeys(name for f in facts for name in f.boxes_per_class)
    rows = ((name, *(f"{f.boxes_per_class.get(name, 0)}" for f in facts)) for name in names)
    return (("class", *(f"boxes in {f.name}" for f in facts)), *rows)


def _mean_and_most(counts: np.ndarray) -> str:
    return f"{counts.mean():.1f} / {counts.max()}" if len(counts) else "-"


def _range(values: np.ndarray, form: str) -> str:
    """Minimum, median and maximum."""
    if not len(values):
        return "-"
    median = np.median(values).astype(values.dtype)
    return " / ".join(format(v.item(), form) for v in (values.min(), median, values.max()))


def as_text(page: DataPage) -> str:
    """The page as text, without pictures."""
    lines = [page.title, *page.remarks, ""]
    for rows in (page.table, page.classes):
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ] + [""]
    lines.append(_verdict(page))
    return "\n".join([*lines, *page.problems]) + "\n"


def _verdict(page: DataPage) -> str:
    return f"{len(page.problems)} problems" + (":" if page.problems else " found")


def as_html(page: DataPage) -> str:
    """The page as a single HTML file with embedded pictures."""
    title = html.escape(page.title)
    body = [f"<h1>{title}</h1>", _list(page.remarks), _table(page.table)]
    body += [f"<h2>{_verdict(page)}</h2>", _list(page.problems[:_MOST_PROBLEMS])]
    if len(page.problems) > _MOST_PROBLEMS:
        body.append(f"<p>and {len(page.problems) - _MOST_PROBLEMS} more, in the text report</p>")
    for name, picture in page.pictures.items():
        body += [f"<h2>Images of {name}</h2>", _image(picture, "jpeg", name)]
    for name, figure in page.figures.items():
        body += [f"<h2>{name}</h2>", _image(figure, "png", name)]
    body.append(_table(page.classes))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    joined = "\n".join(body)
    return f"<!doctype html>\n<html>\n<head>{head}</head>\n<body>\n{joined}\n</body>\n</html>\n"


def write_page(page: DataPage, path: Path) -> tuple[Path, Path]:
    """Write ``path`` (HTML) and the text report next to it; returns both paths."""
    text = path.with_suffix(".txt")
    write_text(path, as_html(page), errors="replace")
    write_text(text, as_text(page), errors="replace")
    return path, text


def _image(content: bytes, kind: str, name: str) -> str:
    if not content:
        return "<p>no image with boxes</p>"
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return f'<img src="{source}" alt="{html.escape(name)}">'


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if lines else ""


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True)
    ]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"
