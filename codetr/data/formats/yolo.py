"""YOLO text: a file per image with a line ``class x y width height`` per box, relative to the
image's size; class names in data.yaml (Ultralytics), or classes.txt or obj.names (darknet).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from codetr.data.box_formats import AUTO, CXCYWH, convention_error, to_xyxy
from codetr.data.files import FileIndex
from codetr.data.formats.content import (
    UNSPLIT,
    Box,
    FolderContent,
    LabelledImage,
    Problem,
    SplitContent,
    by_split,
    one_line,
    short_repr,
)
from codetr.data.formats.text import decoded
from codetr.data.formats.tree import ALL_SPLITS, Tree, split_of_folders
from codetr.data.formats.yaml_text import parse_yaml
from codetr.data.json_columns import as_integer, as_number
from codetr.errors import UserError

FORMAT = "YOLO text"
_CONFIGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES = ("classes.txt", "obj.names", "_darknet.labels")
_BOX = 5  # columns
_POLYGON = 7  # columns at least: a class and three points
_FARTHEST = 2.0  # largest relative coordinate of objects that reach beyond the image
_MAX_CONFIG = 2**20  # bytes
_SIDE = 1000  # pixels of a virtual image for checks of relative boxes


@dataclass(frozen=True, kw_only=True)
class _Config:
    """Class names by number, the folders or lists of each split as in the file, and the number of
    classes according to the file.
    """

    file: str
    names: Mapping[int, str]
    splits: Mapping[str, tuple[str, ...]]
    keypoints: bool = False
    num_classes: int | None = None


def recognise(tree: Tree) -> list[str]:
    """The label files: text files with an image of the same name in the same folder, or in
    ``images`` if they are in ``labels``.
    """
    return [label for label in _labels(tree).values() if label in tree.members]


def read(tree: Tree, box_format: str = AUTO) -> FolderContent:
    """Read all labels, with the splits of data.yaml, or else by the names of folders.

    An image without label file has no boxes, as in Ultralytics. Polygons become their bounding
    boxes. Lines that cannot be used become problems. Raises UserError if there are no class names,
    if class numbers start at another number than the names, or if boxes are in another format.
    """
    config = _read_config(tree)
    problems: list[Problem] = []
    labels = _labels(tree)
    form = CXCYWH if box_format == AUTO else box_format
    images = {
        image: _read_labels(tree, image, label, config, form, problems)
        for image, label in labels.items()
    }
    boxes = [box for image in images.values() for box in image.boxes]
    remarks = [f"class names from {config.file}"]
    remarks += _numbering(tree, config, {box.category for box in boxes}, problems)
    if box_format == AUTO:
        _require_centres(tree, boxes)
    unlabelled = sum(label not in tree.members for label in labels.values())
    orphans = _orphans(tree, labels.values())
    if orphans:
        remarks.append(f"{len(orphans)} label files without an image, such as {orphans[0]}")
    if config.num_classes not in (None, len(config.names)):
        text = f"has nc: {config.num_classes}, but {len(config.names)} names; nc was ignored"
        problems.append(Problem(file=config.file, text=text))
    splits = _splits(tree, images, config, problems)
    problems += [problem for split in splits.values() for problem in split.lost]
    if unlabelled:
        remarks.append(f"{unlabelled} images without label file were taken as images without boxes")
    return FolderContent(
        splits=splits,
        categories=config.names,
        remarks=tuple(remarks),
        problems=tuple(problems),
    )


def _numbering(
    tree: Tree, config: _Config, used: Collection[int], problems: Sequence[Problem]
) -> list[str]:
    """Remarks if class numbers in labels may start at another number than the class names.

    Raises UserError if they certainly do.
    """
    first, last = min(config.names), max(config.names)
    for beyond, lacking, start in ((last + 1, first, 1), (first - 1, last, 0)):
        if lacking not in used and any(_unknown(str(beyond)) in p.text for p in problems):
            raise UserError(
                f"{tree.root} has labels of class {beyond}, none of class {lacking}, but "
                f"{config.file} has names for {first} to {last}: labels count from {start}, so "
                f"number the names in a data.yaml, names: {{{start}: {config.names[first]}, ...}}"
            )
    if first == 0 and used and used == config.names.keys() - {0}:
        return [
            f"only class 0 ({config.names[0]}) is in no image: if labels count from 1, number the "
            f"names in a data.yaml, names: {{1: {config.names[0]}, ...}}"
        ]
    return []


def _require_centres(tree: Tree, boxes: Sequence[Box]) -> None:
    """Raise UserError if boxes must be in another format than YOLO's."""
    corners = np.array([box.xyxy for box in boxes], np.float64).reshape(-1, 4)
    start, end = corners[:, :2], corners[:, 2:]
    written = np.concatenate([(start + end) / 2, end - start], axis=1) * _SIDE
    sizes = np.full((len(boxes), 2), _SIDE)
    wrong = convention_error(written, sizes, CXCYWH)
    if wrong:
        raise UserError(f"{tree.root}: {wrong}")


def _orphans(tree: Tree, labels: Collection[str]) -> list[str]:
    """Text files in folders of labels that belong to no image."""
    homes = {str(PurePosixPath(label).parent) for label in labels}
    return [
        file
        for file in tree.of_type(".txt")
        if str(PurePosixPath(file).parent) in homes
        and PurePosixPath(file).parent.name.lower() == "labels"
        and file not in labels
    ]


def _unknown(number: str) -> str:
    return f"has class {short_repr(number)}, which"


def _labels(tree: Tree) -> dict[str, str]:
    """The label file of every image, which may not exist. A file with a slightly different name is
    used if it does not belong to another image.
    """
    labels = {image: _label_of(image) for image in tree.images}
    own = tree.members.intersection(labels.values())
    spare = FileIndex(file for file in tree.of_type(".txt") if file not in own)
    for image, label in labels.items():
        found = [] if label in own else spare.at(label)
        if len(found) == 1:
            labels[image] = found[0]
    return labels


def _label_of(image: str) -> str:
    """The expected path of an image's label file: with ``labels`` instead of its last folder
    ``images``.
    """
    parts = list(PurePosixPath(image).with_suffix(".txt").parts)
    places = [i for i, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if places:
        parts[places[-1]] = "labels"
    return str(PurePosixPath(*parts))


def _read_labels(
    tree: Tree, image: str, file: str, config: _Config, form: str, problems: list[Problem]
) -> LabelledImage:
    boxes = []
    flawed = 0
    if file in tree.members:
        try:
            text = decoded(tree.read(file))
        except UnicodeDecodeError as error:
            problems.append(Problem(file=file, text=f"is not UTF-8 text, byte {error.start}"))
            text = decoded(tree.read(file), "replace")  # to count its lines
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                if line.strip():
                    boxes.append(_read_line(line, number, config, form))
            except UserError as error:
                flawed += 1
                where = f"line {number}"
                problems.append(Problem(file=file, text=f"{where} {error}; it was skipped"))
    return LabelledImage(file=image, source=file, boxes=tuple(boxes), relative=True, flawed=flawed)


def _read_line(line: str, number: int, config: _Config, form: str) -> Box:
    columns = line.split()
    read = [as_number(column) for column in columns[: _BOX if config.keypoints else None]]
    values = [value for value in read if value is not None]
    if len(values) < len(read):
        raise UserError(f"({short_repr(line)}) has a column that is no number, or not finite")
    polygon = len(values) >= _POLYGON and len(values) % 2 == 1
    if len(values) != _BOX and not polygon:
        raise UserError(
            f"({short_repr(line)}) has {len(values)} columns: a box has 5, a polygon 7 or more (in "
            "predictions, remove the confidence and further columns)"
        )
    if not values[0].is_integer() or int(values[0]) not in config.names:
        raise UserError(f"{_unknown(columns[0])} {config.file} does not name")
    category = int(values[0])
    if max(map(abs, values[1:])) > _FARTHEST:
        raise UserError(
            f"({short_repr(line)}) reaches far beyond the image: columns must be relative to its "
            "width and height, from 0 to 1, neither pixels nor track ids"
        )
    if polygon:
        xs, ys = values[1::2], values[2::2]
        x0, y0, x1, y1 = min(xs), min(ys), max(xs), max(ys)
    else:
        x0, y0, x1, y1 = to_xyxy(np.array([values[1:]]), form)[0].tolist()
    where = f"line {number} ({config.names[category]})"
    return Box(xyxy=(x0, y0, x1, y1), category=category, where=where)


def _read_config(tree: Tree) -> _Config:
    """The content of data.yaml or a similar file, or else of a list of names."""
    found = [file for file in tree.files if PurePosixPath(file).name.lower() in _CONFIGS]
    found = found or [f for f in tree.of_type(".yaml", ".yml") if b"names" in tree.read(f)]
    if found:
        return _parse_config(tree, _only(tree, found, "a YOLO configuration"))
    lists = [file for file in tree.files if PurePosixPath(file).name.lower() in _NAMES]
    if not lists:
        raise UserError(
            f"{tree.root} has YOLO labels but no class names: add a data.yaml with names, or a "
            "classes.txt with one name per line"
        )
    # LabelImg writes the same classes.txt into every folder of labels.
    contents = {tree.read(file) for file in lists}
    file = lists[0] if len(contents) == 1 else _only(tree, lists, "a list of class names")
    lines = _text(tree, file).rstrip().splitlines()
    names = dict(enumerate(lines))
    return _Config(file=file, names=_checked(names, tree, file), splits={})


def _only(tree: Tree, files: Sequence[str], kind: str) -> str:
    """The file nearest to the root. Raises UserError if there are several."""
    depth = min(len(PurePosixPath(file).parts) for file in files)
    nearest = [file for file in files if len(PurePosixPath(file).parts) == depth]
    if len(nearest) > 1:
        raise UserError(
            f"{tree.root} has several files that could be {kind}: {', '.join(nearest[:3])}: "
            "keep one, or set data.root to one of the folders"
        )
    return nearest[0]


def _text(tree: Tree, file: str) -> str:
    content = tree.read(file)
    if len(content) > _MAX_CONFIG:
        raise UserError(f"{tree.root / file} is larger than 1 MiB: it should only hold names")
    try:
        return decoded(content)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{tree.root / file} is not UTF-8 text, byte {error.start}: save it as UTF-8"
        ) from None


def _parse_config(tree: Tree, file: str) -> _Config:
    path = tree.root / file
    content = parse_yaml(_text(tree, file), path)
    if not isinstance(content, dict) or "names" not in content:
        raise UserError(f"{path} has no names: list the class names under names")
    names = content["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        raise UserError(f"{path} has names {short_repr(names)}: give a list, or number: name")
    splits = {
        ALL_SPLITS[key]: _strings(value)
        for key, value in content.items()
        if isinstance(key, str) and key in ALL_SPLITS and _strings(value)
    }
    return _Config(
        file=file,
        names=_checked(names, tree, file),
        splits=splits,
        keypoints="kpt_shape" in content,
        num_classes=as_integer(content.get("nc")),
    )


def _checked(names: Mapping[Any, Any], tree: Tree, file: str) -> dict[int, str]:
    """Class names by number, in order."""
    found: dict[int, str] = {}
    for key, name in names.items():
        number = as_integer(key)
        whole = number is not None and 0 <= number < 2**31 and number not in found
        if number is None or not whole or not isinstance(name, str) or not one_line(name):
            raise UserError(
                f"{tree.root / file} names class {short_repr(key)} {short_repr(name)}: give every "
                "number from 0 a name in one line, once"
            )
        found[number] = one_line(name)
    if not found:
        raise UserError(f"{tree.root / file} has no class names: add at least one")
    return dict(sorted(found.items()))


def _strings(value: Any) -> tuple[str, ...]:
    """A string or a list of strings as a tuple; empty for anything else."""
    values = value if isinstance(value, list) else [value]
    return tuple(values) if all(isinstance(v, str) and v.strip() for v in values) else ()


def _splits(
    tree: Tree,
    images: Mapping[str, LabelledImage],
    config: _Config,
    problems: list[Problem],
) -> dict[str, SplitContent]:
    """Images by split from the entries of data.yaml, and a problem for each line of a list without
    an image; if no entry leads to images, by the names of folders.
    """
    found: dict[str, list[LabelledImage]] = {}
    lost: dict[str, list[Problem]] = defaultdict(list)
    for split, entries in config.splits.items():
        members: list[str] = []
        for entry in entries:
            there = _images_of(tree, entry, config, lost[split])
            if not there:
                text = f"{split}: {short_repr(entry)} leads to no image below the root"
                problems.append(Problem(file=config.file, text=text))
            members += there
        if members:
            found[split] = [images[image] for image in dict.fromkeys(members)]
    if found:
        return by_split(found, lost)
    by_folder: dict[str, list[LabelledImage]] = defaultdict(list)
    for file, image in images.items():
        by_folder[split_of_folders(file) or UNSPLIT].append(image)
    return by_split(by_folder, {})


def _images_of(tree: Tree, entry: str, config: _Config, lost: list[Problem]) -> list[str]:
    """The images of an entry: those below a folder, or in a list (.txt), whose invalid lines are
    added to ``lost``.

    Entries are often paths of another machine, or relative to a missing folder: the longest suffix
    that exists below the configuration's folder or the root is used.
    """
    parts = _parts(entry)
    bases = list(dict.fromkeys([PurePosixPath(config.file).parent, PurePosixPath()]))
    for start in range(len(parts)):
        for base in bases:
            place = str(base.joinpath(*parts[start:]))
            if place in tree.members and place.endswith(".txt"):
                return _listed(tree, place, lost)
            below = [image for image in tree.images if image.startswith(f"{place}/")]
            if below:
                return below
    return []


def _listed(tree: Tree, file: str, lost: list[Problem]) -> list[str]:
    """The images in a list, searched like folders; lines without an image are added to ``lost``."""
    known = set(tree.images)
    folders = list(dict.fromkeys([PurePosixPath(file).parent, PurePosixPath()]))
    lines = decoded(tree.read(file), "replace").splitlines()
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        parts = _parts(line.strip())
        ends = [str(f.joinpath(*parts[i:])) for i in range(len(parts)) for f in folders]
        image = next((end for end in ends if end in known), None) or next(
            (hits[0] for end in ends if len(hits := tree.image_index.at(end)) == 1), None
        )
        text = "is no image below the root" if image is None else "is also in another line"
        if image and image not in found:
            found[image] = line
        elif line.strip() and (image is None or line != found[image]):
            text = f"line {number} ({short_repr(line.strip())}) {text}; it was skipped"
            lost.append(Problem(file=file, text=text))
    return list(found)


def _parts(path: str) -> list[str]:
    """The components of a path of any operating system."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return [part for part in parts if part not in ("..", "/", ".")]
