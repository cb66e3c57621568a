"""Reading COCO JSON, in the same way for training, evaluation and inspection: the keys, and which
entries are usable. ``json_columns`` defines how values are interpreted.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr.data.formats.content import one_line, short_repr
from codetr.data.json_columns import (
    BOX,
    FLAG,
    IDENTIFIER,
    INTEGER,
    NAME,
    NUMBER,
    SIDE,
    Entry,
    Field,
    Report,
    Table,
    as_integer,
    as_label,
    refuse,
)
from codetr.data.other_tools import advice_for_json
from codetr.data.outlines import area_of, box_of
from codetr.errors import UserError

LISTS = ("images", "annotations", "categories")
"""Lists in a COCO file."""

_OTHER_KINDS = {"segments_info": "COCO's panoptic segments", "caption": "COCO's captions"}
"""Keys of annotations in COCO's files of other tasks, and what these contain."""

_ID = Field(key="id", kind=IDENTIFIER, needs="an integer or a name")
_IMAGE_ID = replace(_ID, key="image_id")
_CATEGORY_ID = Field(key="category_id", kind=INTEGER, needs="an integer")
_FILE_NAME = Field(
    key="file_name",
    kind=NAME,
    needs="the name of a file",
    optional=True,
    otherwise=lambda entry: entry.get("coco_url"),
)
_HEIGHT = Field(key="height", kind=SIDE, needs="the number of pixels of the file", optional=True)
_WIDTH = replace(_HEIGHT, key="width")
_BBOX = Field(
    key="bbox",
    kind=BOX,
    needs="four finite numbers [x, y, width, height] in pixels",
    otherwise=lambda entry: box_of(entry.get("segmentation")),
)
_AREA = Field(
    key="area",
    kind=NUMBER,
    needs="a finite number of pixels, or left out",
    optional=True,
    otherwise=lambda entry: None if entry.get("bbox") else area_of(entry.get("segmentation")),
)
_CROWD = Field(key="iscrowd", kind=FLAG, needs="0 or 1", optional=True)
_IGNORE = replace(_CROWD, key="ignore")


@dataclass(frozen=True, kw_only=True)
class CocoImages:
    """``ids`` of I images, and ``written_ids`` as in the file, which may be strings; ``file_names``
    as in the file, or ``coco_url`` (LVIS v1), empty if there is neither; ``sizes`` (I, 2) int64
    (height, width), 0 if missing.
    """

    ids: tuple[int, ...]
    written_ids: tuple[int | str, ...]
    file_names: tuple[str, ...]
    sizes: NDArray[np.int64]

    def take(self, rows: Sequence[int]) -> CocoImages:
        """The images ``rows``."""
        return CocoImages(
            ids=tuple(self.ids[i] for i in rows),
            written_ids=tuple(self.written_ids[i] for i in rows),
            file_names=tuple(self.file_names[i] for i in rows),
            sizes=self.sizes[rows],
        )


@dataclass(frozen=True, kw_only=True)
class CocoObjects:
    """A annotations: the raw ``entries``, and their validated values.

    ``images`` (A,) int64 indices of images; ``categories`` (A,) int64 ids; ``boxes_xywh_px`` (A, 4)
    float64, corner and size, finite, by default the bounds of the segmentation; ``area`` (A,)
    float64 in px^2, by default that of the box, or of the segmentation if there is no box;
    ``crowd`` and ``ignore`` (A,) bool.
    """

    entries: Sequence[Entry]
    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes_xywh_px: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]

    @property
    def outlined(self) -> int:
        """Number of annotations whose box is that of their segmentation."""
        return sum(not entry.get("bbox") for entry in self.entries)

    def take(self, rows: NDArray[np.int64]) -> CocoObjects:
        """The annotations ``rows``."""
        return CocoObjects(
            entries=[self.entries[i] for i in rows.tolist()],
            images=self.images[rows],
            categories=self.categories[rows],
            boxes_xywh_px=self.boxes_xywh_px[rows],
            area=self.area[rows],
            crowd=self.crowd[rows],
            ignore=self.ignore[rows],
        )


def require_lists(content: Any, path: Path, keys: Sequence[str] = LISTS) -> Mapping[str, list[Any]]:
    """``content`` if it is an object with the lists ``keys``. Raises UserError otherwise."""
    advice = None
    if not isinstance(content, dict) or any(key not in content for key in keys):
        advice = advice_for_json(content)
    if advice:
        raise UserError(f"annotation file {path} cannot be read: {advice}")
    if not isinstance(content, dict):
        raise UserError(
            f"annotation file {path} contains a JSON {type(content).__name__}, not the object with "
            "images, annotations and categories of the COCO format: export it as COCO"
        )
    for key in keys:
        if not isinstance(content.get(key), list):
            raise UserError(
                f"annotation file {path} has no list '{key}': a COCO file needs "
                f"{', '.join(keys)}: export it as COCO"
            )
    for key, kind in _OTHER_KINDS.items():
        if any(isinstance(a, dict) and key in a for a in content["annotations"]):
            raise UserError(
                f"annotation file {path} contains {kind} ('{key}'), no boxes of objects: give the "
                "file of the instances, such as instances_train2017.json"
            )
    return content


def read_images(
    content: Mapping[str, list[Any]],
    path: Path,
    report: Report = refuse,
    needed: Container[str] = (),
) -> CocoImages:
    """The valid images: with a unique id, and a valid file name and size if these are ``needed``
    (``file_name``, ``height``, ``width``) or present.
    """
    table = Table(content["images"], "image")
    ids = table.column(_ID).tolist()
    columns = {field.key: table.column(field) for field in (_FILE_NAME, _HEIGHT, _WIDTH)}
    for field in (_FILE_NAME, _HEIGHT, _WIDTH):
        if field.key in needed:
            table.require(field, columns[field.key])
    if len(set(ids)) < len(ids):
        _flaw_repeated(table, ids)
    rows = table.usable(path, report).tolist()
    found = CocoImages(
        ids=tuple(ids),
        written_ids=tuple(_written_id(table.entries, ids)),
        file_names=tuple(columns["file_name"]),
        sizes=np.stack([columns["height"], columns["width"]], axis=1),
    )
    return found.take(rows) if table.flaws else found


def _written_id(entries: Sequence[Entry], ids: Sequence[int]) -> Iterator[int | str]:
    for entry, number in zip(entries, ids, strict=True):
        own = entry.get("id")
        yield own if isinstance(own, str) else number


def _flaw_repeated(table: Table, ids: Sequence[int]) -> None:
    seen: set[int] = set()
    for row, number in enumerate(ids):
        if row not in table.flaws:
            if number in seen:
                table.flaw(row, "has a duplicate id: make the ids unique")
            seen.add(number)


def read_objects(
    content: Mapping[str, list[Any]],
    path: Path,
    images: CocoImages,
    categories: Container[int],
    report: Report = refuse,
    unknown: str = "'categories' does not have: add it there or remove the annotation",
    lost: Mapping[int, str] | None = None,
) -> CocoObjects:
    """The valid annotations of ``images`` and ``categories``. ``unknown`` ends the message for
    other categories; ``lost`` has the reasons, by id, why images of the file are not among
    ``images``. Annotation ids may be anything, since they are labels only.
    """
    lost = lost or {}
    table = Table(content["annotations"], "annotation")
    image_ids, category_ids = table.column(_IMAGE_ID).tolist(), table.column(_CATEGORY_ID)
    boxes, area = table.column(_BBOX), table.column(_AREA)
    crowd, ignore = table.column(_CROWD), table.column(_IGNORE)
    place = {number: i for i, number in enumerate(images.ids)}
    indices = [place.get(number, -1) for number in image_ids]
    if -1 in indices:
        for row, index in enumerate(indices):
            if index == -1:
                written = short_repr(table.entries[row].get("image_id"))
                why = lost.get(
                    image_ids[row],
                    "which is not a usable image of the file: add it to 'images' or remove the "
                    "annotation",
                )
                table.flaw(row, f"has image_id {written}, {why}")
    missing = {number for number in np.unique(category_ids).tolist() if number not in categories}
    if missing:
        for row, number in enumerate(category_ids.tolist()):
            if number in missing:
                table.flaw(row, f"has category_id {number}, which {unknown}")
    without_area = np.array(
        [entry.get("area") is None and bool(entry.get("bbox")) for entry in table.entries], bool
    )
    with np.errstate(over="ignore"):  # huge boxes have no area within an image
        area = np.where(without_area, boxes[:, 2] * boxes[:, 3], area)
    found = CocoObjects(
        entries=table.entries,
        images=np.array(indices, np.int64),
        categories=category_ids,
        boxes_xywh_px=boxes,
        area=area,
        crowd=crowd,
        ignore=ignore,
    )
    rows = table.usable(path, report)
    return found.take(rows) if table.flaws else found


def read_categories(content: Mapping[str, list[Any]], path: Path) -> dict[int, str]:
    """Names by id, without line breaks, in the order of the file. Raises UserError for a category
    without an integer id or a name, for two names of one id, and if there are no categories.
    """
    found: dict[int, str] = {}
    for entry in content["categories"]:
        number = as_integer(entry.get("id")) if isinstance(entry, dict) else None
        name = as_label(entry.get("name")) if isinstance(entry, dict) else None
        if number is None or name is None:
            raise UserError(
                f"category {short_repr(entry)} in {path} needs an integer id and a name: correct it"
            )
        name = one_line(name)
        if found.setdefault(number, name) != name:
            raise UserError(
                f"category {number} in {path} is called {short_repr(found[number])} and "
                f"{short_repr(name)}: give every id one name"
            )
    if not found:
        raise UserError(f"annotation file {path} has no categories: add at least one class")
    return found


def unused_parents(
    contents: Sequence[Mapping[str, list[Any]]], names: Mapping[int, str], used: Container[int]
) -> list[int]:
    """The categories that are not ``used`` and that others have as their ``supercategory`` (the
    root that Roboflow's exports add). They are not classes, unless no class would be left.
    """
    children: dict[Any, set[int | None]] = {}
    for entry in chain.from_iterable(content["categories"] for content in contents):
        parent = as_label(entry.get("supercategory"))
        if parent is not None:
            children.setdefault(one_line(parent), set()).add(as_integer(entry.get("id")))
    unused = [i for i in sorted(names) if i not in used and children.get(names[i], set()) - {i}]
    return unused if len(unused) < len(names) else []
