"""Reading COCO-format annotation files, with errors that a user can act on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr.classes import ClassList
from codetr.data.formats.found import shown
from codetr.data.sample import BoxSet
from codetr.data.segmentation import Segmentations, read_segmentations
from codetr.data.written import Written, is_number, read_written
from codetr.errors import UserError
from codetr.json_text import parse_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CocoAnnotations:
    """The content of one annotation file: I images and their A boxes, sorted by image.

    ``sizes`` (I, 2) int64 (height, width); ``boxes`` (A, 4) float32 xyxy pixels as written, not
    yet clipped or filtered; ``labels`` (A,) int64 class indices; ``crowd`` (A,) bool; ``written``
    what else the file says; ``dropped`` (A,) bool: left out of the targets by a rule of the
    training (None: none); ``annotation_ids`` as in the file; image i owns the rows ``offsets[i]``
    to ``offsets[i + 1]``; ``segmentations`` of all rows, where they were asked for.
    """

    path: Path
    classes: ClassList
    image_ids: tuple[int, ...]
    file_names: tuple[str, ...]
    sizes: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    written: Written
    annotation_ids: tuple[Any, ...]
    offsets: Tensor
    segmentations: Segmentations | None = None
    dropped: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def image_of_box(self) -> Tensor:
        """(A,) the image index of every box."""
        return torch.repeat_interleave(torch.arange(len(self)), self.offsets.diff())

    @cached_property
    def clipped(self) -> Tensor:
        """(A, 4) ``boxes``, each clipped to its image."""
        size_whwh = self.sizes.flip(1)[self.image_of_box].repeat(1, 2)
        return torch.minimum(self.boxes.clamp(min=0), size_whwh.to(self.boxes.dtype))

    @cached_property
    def degenerate(self) -> Tensor:
        """(A,) bool: not finite as written, or without area within the image."""
        area = (self.clipped[:, 2:] > self.clipped[:, :2]).all(dim=1)
        return ~(area & self.boxes.isfinite().all(dim=1))

    @cached_property
    def usable(self) -> Tensor:
        """(A,) bool: neither a crowd region nor degenerate nor dropped, so a target."""
        left_out = self.crowd | self.degenerate
        return ~(left_out if self.dropped is None else left_out | self.dropped)

    def images_with_objects(self, count: int) -> list[int]:
        """``count`` of the images that have usable boxes, the first to the last of them evenly
        spaced; all if there are fewer.
        """
        found = self.image_of_box[self.usable].unique().tolist()
        count = min(count, len(found))
        return [found[i * (len(found) - 1) // max(count - 1, 1)] for i in range(count)]

    def targets(self, index: int) -> BoxSet:
        """The boxes that supervise an image: the usable ones, clipped to it, with masks where the
        segmentations were asked for.
        """
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        keep = self.usable[rows]
        found = BoxSet.ground_truth(self.clipped[rows][keep], self.labels[rows][keep])
        if self.segmentations is None:
            return found
        height, width = self.sizes[index].tolist()
        chosen = (keep.nonzero().flatten() + rows.start).tolist()
        return replace(found, masks=self.segmentations.masks(chosen, (height, width)))


def load_annotations(
    path: Path,
    classes: ClassList | None = None,
    name_parts: int | None = None,
    segmentations: bool = False,
    num_images: int | None = None,
    flaws: list[str] | None = None,
) -> CocoAnnotations:
    """Parse a COCO- or LVIS-format file; ``segmentations`` too if they are wanted. With
    ``num_images`` only so many images with usable boxes, spread evenly over the file (all images
    where none has one).

    A file's name is ``file_name``, or ``coco_url`` where there is none (LVIS v1); with
    ``name_parts`` only so many of its last parts.
    Classes are its categories, sorted by id. A category without annotations that others name as
    their ``supercategory`` (the root that Roboflow exports add) is no class, unless ``classes``
    (those of the training split) has it. Raises UserError for a missing folder or file, broken
    JSON, missing keys, and ids of images or categories that have no entry. With ``flaws``, to look
    at data, annotations that cannot be used are left out, and said there.
    """
    content = _read_json(path)
    images, annotations, categories = (
        _entries(content, key, path) for key in ("images", "annotations", "categories")
    )
    _require_unique_integers(_column(images, "id", "image", path), "image", path)
    used = {a["category_id"] for a in annotations if _is_integer(a.get("category_id"))}
    found = _class_list(categories, used, classes, path)
    if flaws is not None:
        annotations = _flawless(annotations, _Places.of(images, found), path, flaws)
    arranged = partial(_arranged, path, found, name_parts)
    if num_images is not None:
        everything = arranged(images, annotations)
        chosen = {everything.image_ids[i] for i in everything.images_with_objects(num_images)}
        if chosen:
            images = [image for image in images if image["id"] in chosen]
            annotations = [a for a in annotations if a["image_id"] in chosen]
    return arranged(images, annotations, segmentations)


def _flawless(
    annotations: Sequence[Mapping[str, Any]],
    places: _Places,
    path: Path,
    flaws: list[str],
    first: int = 0,
) -> list[Mapping[str, Any]]:
    """The annotations that can be used; what is wrong with each other one goes to ``flaws``.

    They are checked together, and by halves where that fails: large files have few flaws.
    """
    try:
        places.rows(annotations, path, first)
    except UserError as error:
        if len(annotations) > 1:
            half = len(annotations) // 2
            before = _flawless(annotations[:half], places, path, flaws, first)
            return before + _flawless(annotations[half:], places, path, flaws, first + half)
        flaws.append(f"{error}; it was left out")
        return []
    return list(annotations)


@dataclass(frozen=True, kw_only=True)
class _Places:
    """The index of every image and every category, by id."""

    images: Mapping[int, int]
    categories: Mapping[int, int]

    @classmethod
    def of(cls, images: Sequence[Mapping[str, Any]], classes: ClassList) -> _Places:
        index = {image["id"]: i for i, image in enumerate(images)}
        return cls(images=index, categories=classes.index())

    def rows(
        self, annotations: Sequence[Mapping[str, Any]], path: Path, first: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(A,) images, (A,) labels and (A, 4) boxes. Raises UserError for the first annotation
        without; ``first`` is the number of the first in the file.
        """
        ids = [a.get("id") for a in annotations]
        categories = _column(annotations, "category_id", "annotation", path, first)
        images = _column(annotations, "image_id", "annotation", path, first)
        return (
            _look_up(images, self.images, "image", ids, path),
            _look_up(categories, self.categories, "category", ids, path),
            _boxes(annotations, path, first),
        )


def _arranged(
    path: Path,
    classes: ClassList,
    name_parts: int | None,
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    segmentations: bool = False,
) -> CocoAnnotations:
    """The entries of a file, checked and sorted."""
    image_of_box, labels, boxes = _Places.of(images, classes).rows(annotations, path)
    order = image_of_box.argsort(stable=True)
    counts = torch.bincount(image_of_box, minlength=len(images))
    sizes = _sizes(images, path)
    by_image = [annotations[i] for i in order.tolist()]
    return CocoAnnotations(
        path=path,
        classes=classes,
        image_ids=tuple(image["id"] for image in images),
        file_names=_file_names(images, name_parts, path),
        sizes=sizes,
        boxes=boxes[order],
        labels=labels[order],
        crowd=torch.tensor([bool(a.get("iscrowd")) for a in by_image], dtype=torch.bool),
        written=read_written(by_image, path),
        annotation_ids=tuple(a.get("id") for a in by_image),
        offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        segmentations=read_segmentations(by_image, sizes[image_of_box[order]], path)
        if segmentations
        else None,
    )


def _is_integer(value: object) -> bool:
    return isinstance(value, int)


def _file_names(
    images: Sequence[Mapping[str, Any]], name_parts: int | None, path: Path
) -> tuple[str, ...]:
    lvis = bool(images) and "file_name" not in images[0] and "coco_url" in images[0]
    names = _column(images, "coco_url" if lvis else "file_name", "image", path)
    _require_texts(names, "image file name", path)
    if name_parts is None:
        return tuple(names)
    return tuple("/".join(name.split("/")[-name_parts:]) for name in names)


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.parent.is_dir():
        raise UserError(
            f"folder {path.parent} of annotation file {path.name} does not exist: set data.root "
            "to the folder of your data"
        )
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read annotation file {path} ({error.strerror}): check data.root and the "
            "annotation paths under data.source"
        ) from None
    content = parse_json(text, f"annotation file {path}")
    if not isinstance(content, dict):
        raise UserError(
            f"annotation file {path} holds a JSON {type(content).__name__}, not the object with "
            "images, annotations and categories of the COCO format: export it as COCO"
        )
    return content


def _entries(content: Mapping[str, Any], key: str, path: Path) -> Sequence[Mapping[str, Any]]:
    """The list of objects under a top-level key."""
    if key not in content:
        raise UserError(
            f"annotation file {path} has no key '{key}': a COCO file needs images, annotations "
            "and categories"
        )
    entries = content[key]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"'{key}' in annotation file {path} must be a list of objects: repair it")
    return entries


def _column(
    entries: Sequence[Mapping[str, Any]], key: str, kind: str, path: Path, first: int = 0
) -> list[Any]:
    """The value of ``key`` in every entry, which are numbered from ``first``."""
    try:
        return [entry[key] for entry in entries]
    except KeyError:
        number = next(i for i, entry in enumerate(entries) if key not in entry)
        raise UserError(
            f"{kind} number {first + number} (id {shown(entries[number].get('id'))}) in {path} has "
            f"no '{key}': add it or remove the entry"
        ) from None


def _require_unique_integers(ids: Sequence[Any], kind: str, path: Path) -> None:
    seen: set[int] = set()
    for value in ids:
        if type(value) is not int or abs(value) >= 2**63:
            raise UserError(
                f"{kind} id {shown(value)} in {path} is not an integer: number them with integers"
            )
        if value in seen:
            raise UserError(f"{kind} id {value} stands twice in {path}: make the ids unique")
        seen.add(value)


def _require_texts(values: Iterable[Any], kind: str, path: Path) -> None:
    for value in values:
        if not isinstance(value, str) or not value:
            raise UserError(f"{kind} {shown(value)} in {path} is no text: correct it")


def _class_list(
    categories: Sequence[Mapping[str, Any]],
    used: set[Any],
    required: ClassList | None,
    path: Path,
) -> ClassList:
    ids = _column(categories, "id", "category", path)
    _require_unique_integers(ids, "category", path)
    names = dict(zip(ids, _column(categories, "name", "category", path), strict=True))
    _require_texts(names.values(), "category name", path)
    parents = {
        category["supercategory"]
        for category in categories
        if isinstance(category.get("supercategory"), str)
        and category["supercategory"] != category["name"]
    }
    kept = used | set(required.category_ids if required else ())
    dropped = [i for i in ids if i not in kept and names[i] in parents]
    for i in dropped:
        log.info("%s: category %d '%s' is only a parent of others, no class", path, i, names[i])
    classes = sorted(set(ids) - set(dropped))
    if not classes:
        raise UserError(f"annotation file {path} has no categories: add at least one class")
    return ClassList(names=tuple(str(names[i]) for i in classes), category_ids=tuple(classes))


def _look_up(
    ids: Iterable[Any],
    index: Mapping[int, int],
    kind: str,
    annotation_ids: Sequence[Any],
    path: Path,
) -> Tensor:
    """(A,) int64 positions of ``ids`` in ``index``; UserError for the first that has none."""
    positions = []
    for value, annotation_id in zip(ids, annotation_ids, strict=True):
        position = index.get(value) if isinstance(value, int) else None
        if position is None:
            plural = {"category": "categories", "image": "images"}[kind]
            raise UserError(
                f"annotation {shown(annotation_id)} in {path} has unknown {kind} id "
                f"{shown(value)}: add it to '{plural}' or remove the annotation"
            )
        positions.append(position)
    return torch.tensor(positions, dtype=torch.int64)


def _sizes(images: Sequence[Mapping[str, Any]], path: Path) -> Tensor:
    """(I, 2) int64 (height, width)."""
    heights = _column(images, "height", "image", path)
    widths = _column(images, "width", "image", path)
    for image, height, width in zip(images, heights, widths, strict=True):
        whole = isinstance(height, int) and isinstance(width, int)
        if not (whole and min(height, width) > 0 and max(height, width) < 2**31):
            raise UserError(
                f"image {image['id']} in {path} has height {shown(height)} and width "
                f"{shown(width)}: both must be integers above 0, those of the file"
            )
    return torch.tensor([heights, widths], dtype=torch.int64).T.contiguous()


def _boxes(annotations: Sequence[Mapping[str, Any]], path: Path, first: int) -> Tensor:
    """(A, 4) float32 xyxy pixels, as written."""
    rows = _column(annotations, "bbox", "annotation", path, first)
    for annotation, row in zip(annotations, rows, strict=True):
        if not isinstance(row, list) or len(row) != 4 or not all(map(is_number, row)):
            raise UserError(
                f"annotation {shown(annotation.get('id'))} in {path} has bbox {shown(row)}: it "
                "must be four numbers [x, y, width, height] in pixels"
            )
    xywh = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    return torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1).float()
