"""COCO JSON in its usual layouts: annotations/instances_*.json, a _annotations.coco.json in the
image folder of every split (Roboflow), or one file for all images.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from codetr.data.box_formats import AUTO, XYWH, convention_error, to_xyxy
from codetr.data.coco_json import (
    LISTS,
    CocoImages,
    CocoObjects,
    read_categories,
    read_images,
    read_objects,
    require_lists,
    unused_parents,
)
from codetr.data.formats.content import (
    UNSPLIT,
    Box,
    FolderContent,
    LabelledImage,
    Problem,
    SplitContent,
    short_repr,
)
from codetr.data.formats.tree import Tree, split_of_folders, split_of_name
from codetr.data.json_columns import Flaw, as_identifier
from codetr.errors import UserError
from codetr.json_text import parse_json

FORMAT = "COCO JSON"
_ROBOFLOW = "_annotations.coco.json"
_OTHERS = (b'"segments_info"', b'"caption"')
"""Keys in COCO's files of other tasks, which may be in the same folder."""

Content = Mapping[str, list[Any]]


def recognise(tree: Tree) -> list[str]:
    """The annotation files: those with the usual names, or else all that contain images and
    annotations.
    """
    files = tree.of_type(".json")
    for usual in (_is_instances, _is_roboflow):
        found = [file for file in files if usual(file)]
        if found:
            return found
    there = [file for file in files if all(f'"{k}"'.encode() in tree.read(file) for k in LISTS[:2])]
    return [file for file in there if not any(k in tree.read(file) for k in _OTHERS)] or there


def read(tree: Tree, box_format: str = AUTO) -> FolderContent:
    """Read all annotation files; the name of each, or of its folder, determines its split.

    Categories keep their ids. A category without annotations that others have as their
    supercategory (the root of Roboflow's exports) is dropped. Entries that cannot be used become
    problems. Raises UserError for a file in another format, two files for one split, and ids with
    several names.
    """
    problems: list[Problem] = []
    contents = {file: _read_json(tree, file) for file in recognise(tree)}
    if not contents:
        raise UserError(
            f"{tree.root} has no JSON file with images and annotations: choose another "
            "data.source.format"
        )
    categories = _categories(tree, contents)
    splits: dict[str, SplitContent] = {}
    files: dict[str, str] = {}
    remarks: list[str] = []
    for file, content in contents.items():
        split = split_of_name(PurePosixPath(file).name) or split_of_folders(file) or UNSPLIT
        if split in files:
            raise UserError(
                f"{tree.root} has two COCO files for {split}, {files[split]} and {file}: use "
                "data=coco and name the files under data.source"
            )
        files[split] = file
        reader = _Reader(tree, file, categories, problems, box_format)
        images = reader.images(content)
        splits[split] = SplitContent(images=images, lost=reader.lost, flawed=reader.flawed)
        if reader.outlined:
            remarks.append(
                f"{file}: {reader.outlined} objects without bbox got that of their outline"
            )
        for name, found in reader.renamed[:1]:
            remarks.append(
                f"{file}: {len(reader.renamed)} images have other names on disk, the first is "
                f"{found} for {short_repr(name)}"
            )
    used = {b.category for s in splits.values() for image in s.images for b in image.boxes}
    dropped = unused_parents(list(contents.values()), categories, used)
    return FolderContent(
        splits=splits,
        categories={i: name for i, name in sorted(categories.items()) if i not in dropped},
        remarks=(
            *remarks,
            *(
                f"category {i} '{categories[i]}' is a mere supercategory, not a class"
                for i in dropped
            ),
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
    return require_lists(parse_json(tree.read(file), str(path)), path)


def _categories(tree: Tree, contents: Mapping[str, Content]) -> dict[int, str]:
    """Names by id in all files."""
    found: dict[int, str] = {}
    for file, content in contents.items():
        path = tree.root / file
        for number, name in read_categories(content, path).items():
            if found.setdefault(number, name) != name:
                raise UserError(
                    f"{path} calls category {number} {short_repr(name)}, elsewhere it is "
                    f"{short_repr(found[number])}: give every id one name"
                )
    return found


def _is_called(file: str, name: str) -> bool:
    return file.rsplit("/", 1)[-1] == PurePosixPath(name.replace("\\", "/")).name


class _Reader:
    """Reads the images of one file; entries that cannot be used are added to ``problems``, images
    also to ``lost``.
    """

    def __init__(
        self,
        tree: Tree,
        file: str,
        categories: Mapping[int, str],
        problems: list[Problem],
        box_format: str,
    ) -> None:
        self.tree, self.file, self.box_format = tree, file, box_format
        self.categories, self.problems = categories, problems
        self.lost: list[Problem] = []
        self.flawed = 0  # annotations that cannot be used
        self.outlined = 0  # objects whose box is that of their outline
        self.renamed: list[tuple[str, str]] = []  # names in the annotations and on disk

    def images(self, content: Content) -> list[LabelledImage]:
        """Images with their boxes, in the order of the file."""
        path = self.tree.root / self.file
        images = read_images(content, path, self._lose, needed=("file_name",))
        there: list[int] = []
        files: list[str] = []
        lost: dict[int, str] = {}
        for i, (number, file) in enumerate(zip(images.ids, self._files(images), strict=True)):
            if isinstance(file, UserError):
                lost[number] = f"which was skipped, since the image {file}"
                self.lost.append(self._report(f"image {number} {file}; it was skipped"))
            else:
                files.append(file)
                there.append(i)
        images = images.take(there)
        objects = read_objects(
            content, path, images, self.categories, self._leave_out_box, lost=lost
        )
        if self.box_format == AUTO:
            wrong = convention_error(objects.boxes_xywh_px, images.sizes[objects.images][:, ::-1])
            if wrong:
                raise UserError(f"{path}: {wrong}")
        self.outlined = objects.outlined
        boxes = self._boxes(images, objects)
        return [
            LabelledImage(
                file=file,
                source=self.file,
                boxes=tuple(boxes[i]),
                declared_wh=(width, height) if width and height else None,
                number=images.written_ids[i],
            )
            for i, (file, (height, width)) in enumerate(
                zip(files, images.sizes.tolist(), strict=True)
            )
        ]

    def _files(self, images: CocoImages) -> list[str | UserError]:
        """The file of every image, or the reason why there is none. A file that matches the name of
        an image exactly is not used for another one.
        """
        found: list[str | UserError] = []
        for name in images.file_names:
            try:
                found.append(self._find(name))
            except UserError as error:
                found.append(error)
        pairs = list(zip(images.file_names, found, strict=True))
        counts = Counter(file for file in found if isinstance(file, str))
        for i, (name, file) in enumerate(pairs):
            if isinstance(file, str) and not _is_called(file, name):
                if counts[file] > 1:
                    found[i] = UserError(
                        f"({short_repr(name)}) is missing, and {file} belongs to another image"
                    )
                else:
                    self.renamed.append((name, file))
        return found

    def _find(self, name: str) -> str:
        """The image file for ``name``: one whose path ends with it, or with its last component; of
        several, the one next to the annotation file, or in the folder of its split.
        """
        candidates = self.tree.image_index.named(name)
        if len(candidates) > 1:
            home = (PurePosixPath(self.file).parent / name.replace("\\", "/")).parent
            split = split_of_name(PurePosixPath(self.file).name) or split_of_folders(self.file)
            beside = [c for c in candidates if PurePosixPath(c).parent == home]
            of_split = [c for c in candidates if split and split_of_folders(c) == split]
            candidates = beside or of_split or candidates
        if len(candidates) != 1:
            kind = "is several files" if candidates else "is missing"
            raise UserError(f"({short_repr(name)}) {kind} below the root")
        return candidates[0]

    def _boxes(self, images: CocoImages, objects: CocoObjects) -> Mapping[int, list[Box]]:
        """Boxes by image index."""
        found: dict[int, list[Box]] = defaultdict(list)
        seen: set[int | None] = set()
        boxed = np.array([bool(entry.get("bbox")) for entry in objects.entries], bool)
        corners = to_xyxy(objects.boxes_xywh_px, XYWH)
        if self.box_format not in (AUTO, XYWH):  # boxes of outlines are always xywh
            corners[boxed] = to_xyxy(objects.boxes_xywh_px[boxed], self.box_format)
        columns = (objects.entries, objects.images, objects.categories, corners, objects.area)
        values = (c if isinstance(c, Sequence) else c.tolist() for c in columns)
        flags = zip(objects.crowd.tolist(), objects.ignore.tolist(), strict=True)
        for (entry, image, category, xyxy, area), (crowd, ignore) in zip(
            zip(*values, strict=True), flags, strict=True
        ):
            where = f"annotation {short_repr(entry.get('id'))}"
            number = as_identifier(entry.get("id"))
            if number is not None and number in seen:
                self._report(f"{where} has a duplicate id; both were kept")
            seen.add(number)
            extra = {"segmentation": entry["segmentation"]} if "segmentation" in entry else {}
            if entry.get("area") is not None or not entry.get("bbox"):
                extra["area"] = area
            if ignore:
                extra["ignore"] = 1
            box = Box(xyxy=tuple(xyxy), category=category, where=where, ignored=crowd, extra=extra)
            found[image].append(box)
        return found

    def _lose(self, flaw: Flaw) -> None:
        self.lost.append(self._leave_out(flaw))

    def _leave_out_box(self, flaw: Flaw) -> None:
        self._leave_out(flaw)
        self.flawed += 1

    def _leave_out(self, flaw: Flaw) -> Problem:
        return self._report(f"{flaw.entry} {flaw.text}; it was skipped")

    def _report(self, text: str) -> Problem:
        problem = Problem(file=self.file, text=text)
        self.problems.append(problem)
        return problem
