"""LabelMe's own JSON: a file per image with ``shapes``, each a label and points in pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from codetr.data.box_formats import AUTO, require_box_format
from codetr.data.formats.content import (
    Box,
    FolderContent,
    LabelledImage,
    Problem,
    by_folder,
    one_line,
    short_repr,
)
from codetr.data.formats.tree import Tree
from codetr.data.json_columns import as_integer, as_label, as_number, as_side
from codetr.data.outlines import area_of
from codetr.errors import UserError
from codetr.json_text import parse_json

FORMAT = "LabelMe JSON"
_KEYS = (b'"shapes"', b'"imagePath"')
_OUTLINES = ("polygon", "rectangle", "mask", "oriented_rectangle")
"""Shapes whose points enclose the object."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class _Object:
    """A shape, or several of one group: ``outlines`` of all, ``polygons`` those of polygons
    only.
    """

    name: str
    where: str
    outlines: tuple[Points, ...]
    polygons: tuple[Points, ...]


@dataclass(frozen=True, kw_only=True)
class _File:
    """One annotation file."""

    file: str
    image: str
    size_wh: tuple[int, int] | None
    objects: tuple[_Object, ...]
    flawed: int
    joined: int


def recognise(tree: Tree) -> list[str]:
    """The JSON files with shapes or an image path, if at least one has both."""
    # Without zero bytes, UTF-16 and UTF-32 can be searched for ASCII.
    texts = {f: tree.read(f).replace(b"\0", b"") for f in tree.of_type(".json")}
    found = {f: [key in text for key in _KEYS] for f, text in texts.items()}
    return [f for f, keys in found.items() if any(keys)] if any(map(all, found.values())) else []


def read(tree: Tree, box_format: str = AUTO) -> FolderContent:
    """Read all files, with splits by the names of folders.

    Classes are the labels, sorted. Rectangles, polygons, circles and masks become boxes; polygons
    are kept as outlines; shapes with the same label and group are one object, as in LabelMe's own
    converter. Points, lines, and shapes that cannot be read become problems. Raises UserError for a
    ``box_format``, which shapes do not have.
    """
    require_box_format(box_format, (AUTO,))
    problems: list[Problem] = []
    files: list[_File] = []
    unusable: list[Problem] = []  # annotation files
    for file in recognise(tree):
        try:
            files.append(_read_file(tree, file, problems))
        except UserError as error:
            unusable.append(Problem(file=file, text=f"{error}; the file was skipped"))
            problems.append(unusable[-1])
    names = sorted({o.name for one in files for o in one.objects})
    ids = {name: i + 1 for i, name in enumerate(names)}
    without = len(tree.images) - len({one.image for one in files})
    remarks = [f"{without} images without annotation file were skipped"] if without > 0 else []
    joined = sum(one.joined for one in files)
    if joined:
        remarks.append(f"{joined} shapes were joined to others of their label and group_id")
    return FolderContent(
        splits=by_folder((_labelled(one, ids) for one in files), unusable),
        categories={i: name for name, i in ids.items()},
        remarks=tuple(remarks),
        problems=tuple(problems),
    )


def _read_file(tree: Tree, file: str, problems: list[Problem]) -> _File:
    content = parse_json(tree.read(file), "it")
    shapes = content.get("shapes") if isinstance(content, Mapping) else None
    if not isinstance(shapes, list):
        raise UserError("has no list 'shapes': export it again")
    objects: list[_Object] = []
    groups: dict[tuple[str, int], int] = {}
    flawed = 0
    for number, shape in enumerate(shapes):
        try:
            found = _read_shape(shape, f"shape {number}")
        except UserError as error:
            flawed += 1
            problems.append(Problem(file=file, text=f"shape {number} {error}; it was skipped"))
            continue
        group = as_integer(shape.get("group_id"))
        place = None if group is None else groups.setdefault((found.name, group), len(objects))
        if place is None or place == len(objects):
            objects.append(found)
        else:
            objects[place] = _joined(objects[place], found)
    width, height = (as_side(content.get(key)) for key in ("imageWidth", "imageHeight"))
    return _File(
        file=file,
        image=_image_of(tree, file, content),
        size_wh=(width, height) if width and height else None,
        objects=tuple(objects),
        flawed=flawed,
        joined=len(shapes) - flawed - len(objects),
    )


def _read_shape(shape: Any, where: str) -> _Object:
    if not isinstance(shape, Mapping):
        raise UserError(f"is {short_repr(shape)}, not an object")
    name = as_label(shape.get("label"))
    if name is None:
        raise UserError(f"has label {short_repr(shape.get('label'))}: it must be a name")
    name = one_line(name)
    points, kind = _points(shape.get("points")), shape.get("shape_type") or "polygon"
    if kind == "circle" and points is not None and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        outline: Points = [(x - radius, y - radius), (x + radius, y + radius)]
    elif kind in _OUTLINES and points is not None and len(points) > 1 + (kind == "polygon"):
        outline = points
    elif points is None:
        points_text = short_repr(shape.get("points"))
        raise UserError(f"({short_repr(name)}) has points {points_text}: give x, y each")
    else:
        raise UserError(
            f"({short_repr(name)}) is a {short_repr(kind)} of {len(points)} points, no box"
        )
    drawn = (outline,) if kind == "polygon" else ()
    return _Object(name=name, where=f"{where} ({name})", outlines=(outline,), polygons=drawn)


def _joined(one: _Object, other: _Object) -> _Object:
    return _Object(
        name=one.name,
        where=one.where,
        outlines=one.outlines + other.outlines,
        polygons=one.polygons + other.polygons,
    )


def _points(value: Any) -> Points | None:
    if not isinstance(value, list) or not value:
        return None
    found = []
    for pair in value:
        numbers = [as_number(v) for v in pair] if isinstance(pair, list) else []
        if len(numbers) != 2 or None in numbers:
            return None
        found.append((numbers[0], numbers[1]))
    return found  # type: ignore[return-value]


def _image_of(tree: Tree, file: str, content: Mapping[str, Any]) -> str:
    """The image named in the file, next to it or elsewhere, or else the one with the file's
    name.
    """
    written = content.get("imagePath")
    image = written.replace("\\", "/") if isinstance(written, str) else ""
    home, stem = PurePosixPath(file).parent, PurePosixPath(file).stem
    index = tree.image_index
    name = PurePosixPath(image).name
    found = (index.at(str(home / name)) if name else []) or index.at(str(home / stem))
    found = found or (index.named(image) if image else []) or index.named(stem)
    if len(found) != 1:
        inside = ""
        if content.get("imageData"):
            inside = " (it is only embedded in the file, as imageData)"
        raise UserError(
            f"{'several images' if found else 'no image'} named {short_repr(image or stem)} in "
            f"the folder{'' if found else inside}"
        )
    return found[0]


def _labelled(one: _File, ids: Mapping[str, int]) -> LabelledImage:
    boxes = []
    for item in one.objects:
        xs, ys = zip(*(point for outline in item.outlines for point in outline), strict=True)
        extra: dict[str, Any] = {}
        if len(item.polygons) == len(item.outlines):
            polygons = [[v for point in polygon for v in point] for polygon in item.polygons]
            extra = {"segmentation": polygons, "area": area_of(polygons)}
        corners = (min(xs), min(ys), max(xs), max(ys))
        boxes.append(Box(xyxy=corners, category=ids[item.name], where=item.where, extra=extra))
    return LabelledImage(
        file=one.image,
        source=one.file,
        boxes=tuple(boxes),
        declared_wh=one.size_wh,
        flawed=one.flawed,
    )
