"""COCO JSON in its usual layouts: annotations/instances_*.json, a _annotations.coco.json beside
the images of every split (Roboflow), or one file for all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, TypeGuard

from codetr.data.formats.found import UNSPLIT, Box, Found, LabelledImage, Problem, finite, shown
from codetr.data.formats.tree import Tree, split_of_folders, split_of_name
from codetr.errors import UserError
from codetr.json_text import parse_json

FORMAT = "COCO JSON"
_KEYS = ("images", "annotations", "categories")
_ROBOFLOW = "_annotations.coco.json"
_KEPT = ("segmentation", "area")
"""Keys of an annotation that are handed on as they are."""

Content = Mapping[str, Any]


def recognise(tree: Tree) -> list[str]:
    """The annotation files: those of the usual names, else all that speak of images and
    annotations.
    """
    files = tree.of_type(".json")
    for usual in (_is_instances, _is_roboflow):
        found = [file for file in files if usual(file)]
        if found:
            return found
    return [file for file in files if all(f'"{k}"'.encode() in tree.read(file) for k in _KEYS[:2])]


def read(tree: Tree) -> Found:
    """All annotation files, each the split that it or its folder is named after.

    Categories keep their ids. One without annotations that others name as their supercategory (the
    root of Roboflow's exports) is dropped. Entries that cannot be used become problems. Raises
    UserError for a file that is not in the format, two of one split, and ids with several names.
    """
    problems: list[Problem] = []
    contents = {file: _read_json(tree, file) for file in recognise(tree)}
    if not contents:
        raise UserError(
            f"{tree.root} has no JSON file with images and annotations: choose another "
            "data.source.format"
        )
    categories = _categories(tree, contents)
    splits: dict[str, list[LabelledImage]] = {}
    lost: dict[str, list[Problem]] = {}
    files: dict[str, str] = {}
    for file, content in contents.items():
        split = split_of_name(PurePosixPath(file).name) or split_of_folders(file) or UNSPLIT
        if split in files:
            raise UserError(
                f"{tree.root} has two COCO files for {split}, {files[split]} and {file}: use "
                "data=coco and name the files under data.source"
            )
        files[split] = file
        reader = _Reader(tree, file, categories, problems)
        splits[split], lost[split] = reader.images(content), reader.lost
    dropped = _unused_parents(contents, splits, categories)
    return Found(
        splits=splits,
        categories={i: name for i, name in sorted(categories.items()) if i not in dropped},
        lost=lost,
        remarks=tuple(
            f"category {i} '{categories[i]}' is only a parent of others, no class" for i in dropped
        ),
        problems=tuple(problems),
    )


def _is_instances(file: str) -> bool:
    path = PurePosixPath(file)
    return path.parent.name == "annotations" and path.name.startswith("instances_")


def _is_roboflow(file: str) -> bool:
    return PurePosixPath(file).name == _ROBOFLOW


def _read_json(tree: Tree, file: str) -> Content:
    path = tree.root / file
    content = parse_json(tree.read(file), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, no object: export as COCO")
    for key in _KEYS:
        if not isinstance(content.get(key), list):
            raise UserError(f"{path} has no list '{key}': a COCO file needs {', '.join(_KEYS)}")
    return content


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and abs(value) < 2**63


def _categories(tree: Tree, contents: Mapping[str, Content]) -> dict[int, str]:
    """Names by id over all files."""
    found: dict[int, str] = {}
    for file, content in contents.items():
        for entry in content["categories"]:
            path = tree.root / file
            number = entry.get("id") if isinstance(entry, dict) else None
            name = entry.get("name") if isinstance(entry, dict) else None
            if not _is_id(number) or not isinstance(name, str) or not name.strip():
                raise UserError(
                    f"{path} has the category {shown(entry)}: it needs an integer id and a name"
                )
            name = " ".join(name.split())
            if found.setdefault(number, name) != name:
                raise UserError(
                    f"{path} calls category {number} {shown(name)}, elsewhere it is "
                    f"{shown(found[number])}: give every id one name"
                )
    if not found:
        raise UserError(f"{tree.root} has no category in {', '.join(contents)}: add a class")
    return found


def _unused_parents(
    contents: Mapping[str, Content],
    splits: Mapping[str, list[LabelledImage]],
    categories: Mapping[int, str],
) -> list[int]:
    used = {b.category for images in splits.values() for image in images for b in image.boxes}
    parents = {
        entry["supercategory"]
        for content in contents.values()
        for entry in content["categories"]
        if isinstance(entry.get("supercategory"), str) and entry["supercategory"] != entry["name"]
    }
    unused = [i for i in sorted(categories) if i not in used and categories[i] in parents]
    return unused if len(unused) < len(categories) else []


class _Reader:
    """Reads the images of one file; what cannot be used goes to ``problems``, and where it is an
    image to ``lost`` too.
    """

    def __init__(
        self, tree: Tree, file: str, categories: Mapping[int, str], problems: list[Problem]
    ) -> None:
        self.tree, self.file = tree, file
        self.categories, self.problems = categories, problems
        self.lost: list[Problem] = []

    def images(self, content: Content) -> list[LabelledImage]:
        """Images with their boxes, in the order of the file."""
        entries = self._image_entries(content)
        boxes: dict[int, list[Box]] = defaultdict(list)
        seen: set[Any] = set()
        for number, entry in enumerate(content["annotations"]):
            where = f"annotation number {number}"
            try:
                if not isinstance(entry, dict):
                    raise UserError(f"is {shown(entry)}, no object")
                where = f"annotation {shown(entry.get('id', f'number {number}'))}"
                image, box = self._box(entry, where, entries)
            except UserError as error:
                self._report(f"{where} {error}; it was left out")
                continue
            if _is_id(entry.get("id")):
                if entry["id"] in seen:
                    self._report(f"{where} has an id that stands twice; both were kept")
                seen.add(entry["id"])
            boxes[image].append(box)
        return [
            LabelledImage(
                file=file, source=self.file, boxes=tuple(boxes[i]), declared_wh=size, number=i
            )
            for i, (file, size) in entries.items()
        ]

    def _image_entries(self, content: Content) -> dict[int, tuple[str, tuple[int, int] | None]]:
        """File and declared size by id."""
        found: dict[int, tuple[str, tuple[int, int] | None]] = {}
        for number, entry in enumerate(content["images"]):
            where = f"image number {number}"
            try:
                if not isinstance(entry, dict):
                    raise UserError(f"is {shown(entry)}, no object")
                image_id, name = entry.get("id"), entry.get("file_name")
                where = f"image {shown(image_id)}"
                if not _is_id(image_id):
                    raise UserError("has an id that is no integer")
                if image_id in found:
                    raise UserError("has an id that stands twice")
                if not isinstance(name, str) or not name.strip():
                    raise UserError(f"has the file_name {shown(name)}")
                width, height = entry.get("width"), entry.get("height")
                size = (width, height) if _is_id(width) and _is_id(height) else None
                found[image_id] = (self._find(name), size)
            except UserError as error:
                self.lost.append(self._report(f"{where} {error}; it was left out"))
        return found

    def _find(self, name: str) -> str:
        """The image file that is meant: one whose path ends with ``name``, or that has at least
        its last part; of several the one beside the annotation file, or in its split's folder.
        """
        wanted = PurePosixPath(name.replace("\\", "/"))
        candidates = self.tree.images_by_name.get(wanted.name, [])
        exact = [c for c in candidates if c == str(wanted) or c.endswith(f"/{wanted}")]
        candidates = exact or candidates
        if len(candidates) > 1:
            home = PurePosixPath(self.file).parent
            split = split_of_name(PurePosixPath(self.file).name) or split_of_folders(self.file)
            beside = [c for c in candidates if c == str(home / wanted)]
            of_split = [c for c in candidates if split and split_of_folders(c) == split]
            candidates = beside or of_split or candidates
        if len(candidates) != 1:
            kind = "is several files" if candidates else "is missing"
            raise UserError(f"({shown(name)}) {kind} below the root")
        return candidates[0]

    def _box(
        self, entry: Mapping[str, Any], where: str, entries: Mapping[int, Any]
    ) -> tuple[int, Box]:
        image, category, xywh = (entry.get(k) for k in ("image_id", "category_id", "bbox"))
        if not _is_id(image) or image not in entries:
            raise UserError(f"has image_id {shown(image)}, which is no usable image")
        if not _is_id(category) or category not in self.categories:
            raise UserError(f"has category_id {shown(category)}, which is no category")
        if not isinstance(xywh, list) or len(xywh) != 4 or not finite(xywh):
            raise UserError(f"has bbox {shown(xywh)}: it needs four finite numbers x, y, w, h")
        x, y, width, height = (float(v) for v in xywh)
        box = Box(
            xyxy=(x, y, x + width, y + height),
            category=category,
            where=where,
            ignored=entry.get("iscrowd") in (1, True),
            extra={key: entry[key] for key in _KEPT if key in entry},
        )
        return image, box

    def _report(self, text: str) -> Problem:
        problem = Problem(file=self.file, text=text)
        self.problems.append(problem)
        return problem
