"""Data in any supported format, which is recognised and converted once to COCO JSON."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from codetr.data.box_formats import XYWH, require_box_format
from codetr.data.convert import CocoWriter
from codetr.data.files import counted_suffixes, is_foreign, missing_plugin
from codetr.data.formats import coco, labelme, voc, yolo
from codetr.data.formats.content import FolderContent, LabelledImage, Problem, SplitContent
from codetr.data.formats.tree import Tree, list_files
from codetr.data.other_tools import advice_for_json, advice_for_text
from codetr.data.placement import AUTO, require_reading
from codetr.data.sources import MAX_LOST, Split, Splits, require_share, rounded_up_share
from codetr.data.split_choice import SplitChoice
from codetr.errors import UserError, abbreviated
from codetr.json_text import parse_json
from codetr.writing import new_folder

log = logging.getLogger(__name__)

FORMATS = {"coco": coco, "voc": voc, "yolo": yolo, "labelme": labelme}
"""Modules with FORMAT (its name), ``recognise(tree)`` and ``read(tree, box_format)``."""

_VERSION = 6  # increment when the conversion changes, so that earlier results are not reused
_SHOWN = 5  # problems in the log; all are in the file
_NAMED = 12  # classes in the log
_LOOKED_AT = 20  # files of each type that are searched for formats of other tools
_ABOUT = "about.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The parameters of a conversion; see ``CustomFolder``."""

    format: str
    splits: SplitChoice
    max_lost: float
    box_format: str
    boxes: str = AUTO


class CustomFolder:
    """A folder in COCO JSON, VOC XML, YOLO text or LabelMe JSON, converted to COCO below ``cache``.

    ``format`` is coco, voc, yolo, labelme, or auto (recognised by the files). Splits are those of
    the data; if there are none, ``val_share`` of the images become val, at random by ``seed``.
    ``train`` and ``val`` name the splits to use; ``box_format`` is that of the boxes (``auto``:
    that of the format, unless boxes contradict it). It is an error if more than the share
    ``max_lost`` of the images of a split, or of its boxes, cannot be used.

    The root is only read. The folder below ``cache`` is named by a hash of the names, sizes and
    modification times of all files, so that data is converted again when it changes. It is written
    to a temporary folder and renamed at the end, so that it is always complete. Entries that cannot
    be used are skipped and reported.
    """

    def __init__(
        self,
        *,
        cache: str | Path = "data/converted",
        format: str = "auto",
        train: str = "train",
        val: str = "val",
        val_share: float = 0.2,
        seed: int = 0,
        max_lost: float = MAX_LOST,
        box_format: str = AUTO,
    ) -> None:
        require_box_format(box_format)
        if format not in ("auto", *FORMATS):
            raise UserError(f"data.source.format={format}: choose auto, {', '.join(FORMATS)}")
        if not 0 < val_share < 1:
            raise UserError(
                f"data.source.val_share={val_share}: give a share between 0 and 1; "
                "data.source.val=train trains on all images, and validates on them"
            )
        self.cache = Path(cache).expanduser()
        require_share(max_lost)
        self.options = Options(
            format=format,
            splits=SplitChoice(train=train, val=val, val_share=val_share, seed=seed),
            max_lost=max_lost,
            box_format=box_format,
        )
        self._done: dict[tuple[Path, str], Splits] = {}

    def __call__(self, root: Path, boxes: str = AUTO) -> Splits:
        """The two splits, with boxes in pixels of the upright images. Converts them on the first
        call and logs a summary.

        Raises UserError if no format or more than one is recognised, and if a split is missing or
        has no usable annotations.
        """
        require_reading(boxes)
        if (root, boxes) not in self._done:
            self._done[root, boxes] = self._splits(root, replace(self.options, boxes=boxes))
        return self._done[root, boxes]

    def _splits(self, root: Path, options: Options) -> Splits:
        tree = list_files(root, exclude=self.cache)
        folder = self._folder(tree, options)
        if not folder.is_dir():
            self._convert(tree, folder, options)
        about = json.loads((folder / _ABOUT).read_text())
        for line in about["remarks"]:
            log.info("%s: %s", root, line)
        _warn(root, about["problems"], folder)
        return Splits(
            train=Split(annotations=folder / "train.json", images=root),
            val=Split(annotations=folder / "val.json", images=root),
            max_lost=options.max_lost,
            placed=True,
            box_format=XYWH,
            remarks=tuple(about["remarks"]),
            problems=tuple(about["problems"]),
        )

    def _folder(self, tree: Tree, options: Options) -> Path:
        parts = (str(_VERSION), tree.fingerprint, repr(options))
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
        name = re.sub(r"[^\w.-]", "_", tree.root.resolve().name) or "root"
        return self.cache / f"{name}-{digest}"

    def _convert(self, tree: Tree, folder: Path, options: Options) -> None:
        name = recognise(tree) if options.format == "auto" else options.format
        found = FORMATS[name].read(tree, options.box_format)
        problems = list(found.problems)
        if not any(split.images for split in found.splits.values()):
            first = f"; the first problem: {problems[0]}" if problems else ""
            raise UserError(
                f"{tree.root} has no usable annotated image in {FORMATS[name].FORMAT}{first}"
            )
        if not found.categories:
            first = f"the first problem: {problems[0]}" if problems else "annotate images"
            raise UserError(f"{tree.root} has no annotated object, so no class: {first}")
        train, val, chosen = options.splits(tree.root, found.splits)
        contents, placed = _contents(tree, found, (train, val), problems, options)
        remarks = [f"recognised as {FORMATS[name].FORMAT}", *found.remarks, *chosen, *placed]
        remarks += _foreign(tree)
        classes = tuple(found.categories.values())
        remarks += [
            f"{len(classes)} classes: {abbreviated(classes, _NAMED)}",
            f"converted to {folder}",
        ]
        about = {"remarks": remarks, "problems": [str(problem) for problem in problems]}
        names = ("train.json", "val.json", _ABOUT)
        with new_folder(folder) as unfinished:
            for name, content in zip(names, (*contents, about), strict=True):
                (unfinished / name).write_text(json.dumps(content))


def recognise(tree: Tree) -> str:
    """The format of a folder. Raises UserError if none or more than one is recognised."""
    files = {name: module.recognise(tree) for name, module in FORMATS.items()}
    there = {name: found for name, found in files.items() if found}
    if len(there) == 1:
        return next(iter(there))
    if there:
        kinds = [f"{FORMATS[name].FORMAT} ({len(found)} files)" for name, found in there.items()]
        raise UserError(
            f"{tree.root} has {' and '.join(kinds)}: choose one with data.source.format="
            f"{next(reversed(there))}"
        )
    _refuse_other_tools(tree)
    raise UserError(
        f"{tree.root} has {len(tree.images)} images among {len(tree.files)} files, but no "
        "annotations in COCO JSON, Pascal VOC XML, YOLO text or LabelMe JSON: set data.root to the "
        "folder of both"
    )


def _refuse_other_tools(tree: Tree) -> None:
    """Raise UserError for a file in a tool's own format; the message says what to export
    instead.
    """
    for file in tree.of_type(".json")[:_LOOKED_AT]:
        try:
            advice = advice_for_json(parse_json(tree.read(file), file))
        except UserError:
            continue  # not JSON
        if advice:
            raise UserError(f"{tree.root / file} cannot be read: {advice}")
    for file in tree.of_type(".xml", ".csv")[:_LOOKED_AT]:
        advice = advice_for_text(tree.read(file))
        if advice:
            raise UserError(f"{tree.root / file} cannot be read: {advice}")


def _contents(
    tree: Tree,
    found: FolderContent,
    parts: Sequence[SplitContent],
    problems: list[Problem],
    options: Options,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The COCO content of each part, and remarks about it. Raises UserError if a part loses more
    than the share ``max_lost`` of its images or boxes.
    """
    writer = CocoWriter(
        root=tree.root, categories=found.categories, problems=problems, boxes=options.boxes
    )
    with Progress(transient=True) as progress:
        count = sum(len(part.images) for part in parts)
        task = progress.add_task("reading image sizes", total=count)
        images = [part.images for part in parts]
        contents = writer.contents(images, partial(progress.advance, task))
    for part, content in zip(parts, contents, strict=True):
        problems += _repeated(part.images)
        read = {entry["file_name"] for entry in content["images"]}
        unread = {image.file for image in part.images} - read
        no_image = [*part.lost, *(p for p in problems if p.file in unread)]
        named = len(part.images) + len(part.lost)
        lost = named - len(content["images"])
        _require_most(tree, "images", lost, named, no_image, options.max_lost)
        kept = [image for image in part.images if image.file in read]
        named = part.flawed + sum(len(image.boxes) + image.flawed for image in kept)
        of_images = set(no_image)
        no_box = [p for p in problems if p not in of_images]
        lost = named - len(content["annotations"])
        _require_most(tree, "boxes", lost, named, no_box, options.max_lost)
    return contents, writer.remarks


def _repeated(images: Sequence[LabelledImage]) -> list[Problem]:
    """A problem for each file that occurs as several images of a split."""
    counts = Counter(image.file for image in images)
    sources = {image.file: image.source for image in images if counts[image.file] > 1}
    return [
        Problem(
            file=source,
            text=f"{file} occurs as {counts[file]} images of the split, each with its own boxes, "
            "so that objects of one are background in another; all were kept",
        )
        for file, source in sources.items()
    ]


def _require_most(
    tree: Tree, kind: str, lost: int, named: int, problems: Sequence[Problem], max_lost: float
) -> None:
    if lost > max_lost * named:
        accept = f"; to accept the loss, set data.source.max_lost={rounded_up_share(lost, named)}"
        raise UserError(
            f"{lost} of {named} {kind} of a split of {tree.root} cannot be used; the first one: "
            f"{problems[0]}{accept if lost < named else ''}"
        )


def _foreign(tree: Tree) -> list[str]:
    """A remark about image files that the installed Pillow cannot decode."""
    files = [file for file in tree.files if is_foreign(file)]
    if not files:
        return []
    hint = missing_plugin(*files)
    return [
        f"{counted_suffixes(files)} are images that the installed Pillow cannot open: skipped"
        + (f"; {hint}" if hint else "")
    ]


def _warn(root: Path, problems: Sequence[str], folder: Path) -> None:
    """Log the first problems, and the file that lists all."""
    if problems:
        log.warning("%s: %d problems, all listed in %s", root, len(problems), folder / _ABOUT)
        for line in problems[:_SHOWN]:
            log.warning("  %s", line)
