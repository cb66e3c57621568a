"""Pascal VOC: an XML file per image, and lists of images in ImageSets/Main.

Everingham et al., "The PASCAL Visual Object Classes Challenge", development kit, section 4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from codetr.data.box_formats import AUTO, BOX_FORMATS, XYWH, XYXY, fitting_formats, to_xyxy
from codetr.data.files import FileIndex, as_stem, is_image, without_suffix
from codetr.data.formats.content import (
    UNSPLIT,
    Box,
    FolderContent,
    LabelledImage,
    Problem,
    SplitContent,
    by_folder,
    by_split,
    one_line,
    short_repr,
)
from codetr.data.formats.text import decoded
from codetr.data.formats.tree import ALL_SPLITS, Tree
from codetr.data.json_columns import as_flag, as_number
from codetr.errors import UserError

FORMAT = "Pascal VOC XML"
_FOLDER = "annotations"
_MAX_DEPTH = 32  # of nested elements; annotations have 4
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Forbidden(ValueError):
    """XML features that annotations do not need, but attacks use."""


@dataclass(frozen=True, kw_only=True)
class _Object:
    """One ``object`` element, with its box as in the file."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    where: str


@dataclass(frozen=True, kw_only=True)
class _Annotation:
    """One XML file."""

    file: str
    image: str
    size_wh: tuple[int, int] | None
    objects: tuple[_Object, ...] = field(default=())
    flawed: int = 0


def recognise(tree: Tree) -> list[str]:
    """The XML files of images: those in a folder Annotations, or with the name of an image."""
    stems = {PurePosixPath(as_stem(image)).name for image in tree.images}
    return [
        file
        for file in tree.of_type(".xml")
        if PurePosixPath(file).parent.name.lower() == _FOLDER
        or PurePosixPath(as_stem(file)).name in stems
    ]


def read(tree: Tree, box_format: str = AUTO) -> FolderContent:
    """Read all annotations, with the splits of ImageSets/Main, or else by the names of folders.

    Classes are the names in the data, sorted. Coordinates are 1-based inclusive pixels, as the
    format defines them; if a 0 occurs, all are taken as 0-based edges, as are boxes in another
    ``box_format``, which is given or the only one that fits. Difficult objects are ignored in
    training and evaluation, as in VOC's own. Files that cannot be used become problems. Raises
    UserError if boxes fit two formats.
    """
    problems: list[Problem] = []
    unusable: list[Problem] = []  # annotation files
    annotations = []
    for file in recognise(tree):
        try:
            annotations.append(_read_file(tree, file, problems))
        except UserError as error:
            unusable.append(Problem(file=file, text=f"{error}; the file was skipped"))
    objects = [o for annotation in annotations for o in annotation.objects]
    names = sorted({o.name for o in objects})
    ids = {name: i + 1 for i, name in enumerate(names)}
    form = _box_format(tree, annotations) if box_format == AUTO else box_format
    first = 0 if form != XYXY or any(min(o.box[:2]) < 1 for o in objects) else 1
    images = {a.file: _labelled(a, ids, form, first) for a in annotations}
    lists = _image_sets(tree)
    if lists:
        splits = _listed(tree, lists, images, unusable, problems)
        problems += [problem for split in splits.values() for problem in split.lost]
    else:
        splits = by_folder(images.values(), unusable)
    listed = {image.source for split in splits.values() for image in split.images}
    unlisted = len(images) - len(listed)
    left_out = (f"{unlisted} annotated images are in no list: skipped",) if unlisted else ()
    return FolderContent(
        splits=splits,
        categories={i: name for name, i in ids.items()},
        remarks=(*_remarks(tree, objects, form, first, images), *left_out),
        problems=(*unusable, *problems),
    )


def parse_xml(content: bytes) -> Element:
    """The root element. Raises UserError for XML that is invalid, nested too deeply, or has a
    document type definition (its entities can exhaust memory and read other files).
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise _Forbidden(f"elements nested more than {_MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def forbid(*_: object) -> None:
        raise _Forbidden("a document type definition, which is not allowed")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = forbid
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError) as error:  # the latter two: its encoding
        raise UserError(f"not valid XML ({error}): repair it, or save it as UTF-8") from None


def _read_file(tree: Tree, file: str, problems: list[Problem]) -> _Annotation:
    root = parse_xml(tree.read(file))
    if root.tag != "annotation":
        raise UserError(f"its root is <{short_repr(root.tag)}>, not <annotation>: export it as VOC")
    elements = root.findall("object")
    objects = []
    for number, element in enumerate(elements):
        try:
            objects.append(_read_object(element, f"object {number}"))
        except UserError as error:
            problems.append(Problem(file=file, text=f"object {number} {error}; it was skipped"))
    return _Annotation(
        file=file,
        image=_image_of(tree, file, _text(root, "filename")),
        size_wh=_size(root),
        objects=tuple(objects),
        flawed=len(elements) - len(objects),
    )


def _read_object(element: Element, where: str) -> _Object:
    name = _text(element, "name")
    if not name:
        raise UserError("has no name")
    box = element.find("bndbox")
    if box is None:
        raise UserError(f"({short_repr(name)}) has no bndbox")
    texts = [_text(box, corner) for corner in _CORNERS]
    numbers = [number for text in texts if (number := as_number(text)) is not None]
    if len(numbers) < len(texts):
        raise UserError(
            f"({short_repr(name)}) has bndbox {short_repr(texts)}, which are no four numbers"
        )
    flag = _text(element, "difficult")
    difficult = as_flag(flag or False)
    if difficult is None:
        raise UserError(f"({short_repr(name)}) has difficult {short_repr(flag)}: it must be 0 or 1")
    x0, y0, x1, y1 = numbers
    return _Object(name=name, box=(x0, y0, x1, y1), difficult=difficult, where=where)


def _box_format(tree: Tree, annotations: Sequence[_Annotation]) -> str:
    """The format of VOC, unless boxes fit another one only. Raises UserError if it is ambiguous."""
    rows = [(o.box, a.size_wh or (0, 0)) for a in annotations for o in a.objects]
    boxes = np.array([box for box, _ in rows], np.float64).reshape(-1, 4)
    sizes = np.array([size for _, size in rows], np.float64).reshape(-1, 2)
    others, count = fitting_formats(boxes, sizes, XYXY)
    turned = (boxes[:, 2:] < boxes[:, :2]).all(axis=1)
    if XYWH not in others:
        return XYXY
    if turned.all():
        raise UserError(
            f"{tree.root}: {count} of {len(boxes)} boxes have xmin above xmax, or ymin above ymax, "
            "and fit their images both as swapped corners and as x, y, width, height: set "
            f"data.source.box_format={XYXY} or data.source.box_format={XYWH}"
        )
    return XYWH


def _text(element: Element, tag: str) -> str:
    """The text of a direct child, without line breaks; empty if there is none."""
    return one_line(element.findtext(tag) or "")


def _size(root: Element) -> tuple[int, int] | None:
    """Width and height, if the file has them; many tools write 0."""
    size = root.find("size")
    if size is None:
        return None
    width, height = (as_number(_text(size, side)) for side in ("width", "height"))
    return (int(width), int(height)) if width and height else None


def _image_of(tree: Tree, file: str, filename: str) -> str:
    """The image of an annotation: the one with the same stem, in JPEGImages or in the same folder
    (if there are several, the one with the suffix of ``filename``), or else the one named
    ``filename`` in any folder. Raises UserError if there is none, or several.
    """
    path = PurePosixPath(file)
    image = PurePosixPath(filename.replace("\\", "/")).name
    own = path.stem + (PurePosixPath(image).suffix if is_image(image) else "")
    homes = [path.parent.parent / "JPEGImages", path.parent, path.parent.parent / "images"]
    index = tree.image_index
    found = next((hits for home in homes if (hits := index.at(str(home / own)))), [])
    found = found or index.named(image) or index.named(own)
    if len(found) != 1:
        raise UserError(
            f"{'several images' if found else 'no image'} named {path.stem} or "
            f"{short_repr(image)} in the folder"
        )
    return found[0]


def _labelled(
    annotation: _Annotation, ids: Mapping[str, int], form: str, first: int
) -> LabelledImage:
    written = np.array([o.box for o in annotation.objects], np.float64).reshape(-1, 4)
    corners = to_xyxy(written, form)
    if form == XYXY:  # swapped corners are put in order
        corners = np.sort(corners.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    boxes = tuple(
        Box(
            xyxy=(x0 - first, y0 - first, x1, y1),
            category=ids[o.name],
            where=f"{o.where} ({o.name})",
            ignored=o.difficult,
        )
        for o, (x0, y0, x1, y1) in zip(annotation.objects, corners.tolist(), strict=True)
    )
    return LabelledImage(
        file=annotation.image,
        source=annotation.file,
        boxes=boxes,
        declared_wh=annotation.size_wh,
        flawed=annotation.flawed,
    )


def _listed(
    tree: Tree,
    lists: Iterable[tuple[str, str]],
    images: Mapping[str, LabelledImage],
    unusable: Iterable[Problem],
    problems: list[Problem],
) -> dict[str, SplitContent]:
    """The images in the lists of ImageSets/Main by split, and a problem for each entry without a
    usable image.
    """
    places = {file: _place(file) for file in images}
    reasons = {_place(problem.file): f": {problem}" for problem in unusable}
    index = FileIndex(places.values())
    by_place: dict[str, list[LabelledImage]] = defaultdict(list)
    for file, place in places.items():
        by_place[place].append(images[file])
    found: dict[str, list[LabelledImage]] = defaultdict(list)
    lost: dict[str, list[Problem]] = defaultdict(list)
    taken: set[tuple[str, str]] = set()  # split and annotation file
    for split, file in lists:
        home = PurePosixPath(file).parents[2]
        for name in _lines(tree, file, problems):
            last = PurePosixPath(name.replace("\\", "/")).name  # maybe of a foreign path
            spellings = [str(home / f"{n}.xml") for n in (name, name.split()[0], last)]
            hits = next((there for n in spellings if (there := index.at(n))), [])
            matches = [image for hit in dict.fromkeys(hits) for image in by_place[hit]]
            if len(matches) == 1 and (split, matches[0].source) not in taken:
                taken.add((split, matches[0].source))
                found[split] += matches
                continue
            text = f"{short_repr(name)} has no usable annotation"
            why = next((reasons[n] for n in spellings if n in reasons), "; it was skipped")
            if matches:
                first, second = (matches * 2)[:2]
                text = f"{short_repr(name)} could be {first.source} or {second.source}"
                if len(matches) == 1:
                    text = f"{short_repr(name)} is {first.source}, which is also in another line"
                why = "; it was skipped"
            lost[split].append(Problem(file=file, text=text + why))
    return by_split(found, lost)


def _place(file: str) -> str:
    """The path of an annotation file without its folder Annotations."""
    return str(PurePosixPath(file).parent.parent / PurePosixPath(file).name)


def _image_sets(tree: Tree) -> list[tuple[str, str]]:
    """Split and file of every list; trainval is used if there is no train."""
    lists = [
        (PurePosixPath(file).stem.lower(), file)
        for file in tree.of_type(".txt")
        if [part.lower() for part in PurePosixPath(file).parts[-3:-1]] == ["imagesets", "main"]
    ]
    known = [(ALL_SPLITS[name], file) for name, file in lists if name in ALL_SPLITS]
    if not any(split == "train" for split, _ in known):
        known += [(UNSPLIT, file) for name, file in lists if name == "trainval"]
    return known


def _lines(tree: Tree, file: str, problems: list[Problem]) -> Sequence[str]:
    """The image names of a list, without suffixes."""
    try:
        text = decoded(tree.read(file))
    except UnicodeDecodeError as error:
        problems.append(Problem(file=file, text=f"is not UTF-8 text, byte {error.start}"))
        return ()
    names = [line.strip() for line in text.splitlines() if line.strip()]
    return [without_suffix(name) for name in dict.fromkeys(names)]


def _remarks(
    tree: Tree,
    objects: Sequence[_Object],
    form: str,
    first: int,
    images: Mapping[str, LabelledImage],
) -> tuple[str, ...]:
    remarks = [
        "pixels are counted from 1, as the format says"
        if first
        else "a coordinate is 0: pixels are counted from 0"
    ]
    if form != XYXY:
        remarks = [
            f"boxes were taken as {BOX_FORMATS[form]}, despite the names of their elements "
            f"(data.source.box_format={form})"
        ]
    difficult = sum(o.difficult for o in objects)
    if difficult:
        remarks.append(f"{difficult} difficult objects are ignored in training and evaluation")
    turned = sum(o.box[0] > o.box[2] or o.box[1] > o.box[3] for o in objects)
    if turned and form == XYXY:
        remarks.append(
            f"{turned} objects have xmin above xmax, or ymin above ymax: swapped "
            f"(data.source.box_format={XYWH} if they are {BOX_FORMATS[XYWH]})"
        )
    without = len(tree.images) - len({image.file for image in images.values()})
    if without > 0:
        remarks.append(f"{without} images without annotation file were skipped")
    return tuple(remarks)
