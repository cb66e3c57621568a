"""Boxes predicted in advance by teacher detectors, read from files (Teach-DETR, arXiv 2211.11953).

A file is a list of COCO results, ``{"image_id", "category_id", "bbox": [x, y, width, height],
"score"}`` in pixels of the original image, or, as in the official Teach-DETR, an object with such
lists by image id. Boxes are augmented together with the ground truth.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from codetr.data.annotations import CocoAnnotations
from codetr.data.json_columns import as_identifier
from codetr.data.sample import BoxSet
from codetr.errors import UserError
from codetr.json_text import parse_json

Entry = tuple[int, dict[str, Any]]
"""An image id and one of its results."""


class Merge(Protocol):
    """Combines the teachers' boxes for an image into supervision."""

    def __call__(self, found: Sequence[BoxSet | None], size: tuple[int, int]) -> tuple[BoxSet, ...]:
        """``found[t]``: the boxes of teacher t, None if the image is not in its file; ``size``
        (height, width). Returns the same number of sets for every image.
        """
        ...


@dataclass(frozen=True)
class Parallel:
    """Every teacher supervises separately (the paper, section 3.2)."""

    def __call__(self, found: Sequence[BoxSet | None], size: tuple[int, int]) -> tuple[BoxSet, ...]:
        """One set per teacher, empty if the image is not in its file."""
        return tuple(BoxSet.empty() if boxes is None else boxes for boxes in found)


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """One set from all teachers by class-wise NMS (the released code).

    Boxes are ranked by score plus the ``weights[t]`` of their teacher (None: equal weights). After
    NMS, the best are kept, as many as a teacher has on average, with their own scores. With
    ``whole_image``, an image that is in no file gets one box of the whole image, of class 0 and
    score 0, as officially (the encoder's proposals learn it); without, it gets none.
    """

    iou_threshold: float = 0.2
    weights: Sequence[float] | None = None
    whole_image: bool = True

    def __call__(self, found: Sequence[BoxSet | None], size: tuple[int, int]) -> tuple[BoxSet, ...]:
        """One set."""
        weights = self.weights if self.weights is not None else [0.0] * len(found)
        if len(weights) != len(found):
            raise UserError(
                f"data.teacher_boxes.merge has {len(weights)} weights for {len(found)} files in "
                "data.teachers: give one weight for each"
            )
        own = [(boxes, w) for boxes, w in zip(found, weights, strict=True) if boxes is not None]
        if not own:
            return (_whole(size) if self.whole_image else BoxSet.empty(),)
        boxes = BoxSet.joined([b for b, _ in own])
        ranking = torch.cat([b.scores + w for b, w in own])
        order = batched_nms(boxes.boxes, ranking, boxes.labels, self.iou_threshold)
        return (boxes.select(order[: len(boxes) // len(own)]),)


def _whole(size: tuple[int, int]) -> BoxSet:
    height, width = size
    return BoxSet(
        boxes=torch.tensor([[0.0, 0.0, width, height]]),
        labels=torch.zeros(1, dtype=torch.int64),
        scores=torch.zeros(1),
    )


@dataclass(frozen=True, kw_only=True)
class TeacherResults:
    """One teacher's boxes on I images: ``boxes`` sorted by image, then by descending score; image i
    owns the rows ``offsets[i]`` to ``offsets[i + 1]``; ``named`` (I,) bool: the image is in the
    file.
    """

    boxes: BoxSet
    offsets: Tensor
    named: Tensor

    def of(self, index: int) -> BoxSet | None:
        """The boxes on an image; None if it is not in the file."""
        if not self.named[index]:
            return None
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.boxes.map(lambda values: values[rows])


class TeacherBoxes:
    """Supervision by teachers for each image of an annotation file, beside its ground truth.

    Args:
        files: one result file per teacher.
        annotations: the images and classes; results for other images are ignored.
        merge: combines all teachers' boxes into one or several sets.
        top_k: maximum number of boxes per teacher and image, the best ones; None: no limit.
        min_score: minimum score of boxes.

    Raises UserError for a file that is missing or invalid, has a category that is not in the
    annotations, or has none of their images.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        annotations: CocoAnnotations,
        merge: Merge,
        top_k: int | None = None,
        min_score: float = 0.0,
    ) -> None:
        if top_k is not None and top_k < 1:
            raise UserError(f"data.teacher_boxes.top_k={top_k}: give at least 1, or null for all")
        self.results = tuple(
            read_results(Path(file).expanduser(), annotations, top_k, min_score) for file in files
        )
        self.sizes, self.merge = annotations.sizes, merge

    def __call__(self, index: int) -> tuple[BoxSet, ...]:
        """The box sets of the image ``index``."""
        height, width = self.sizes[index].tolist()
        return self.merge([found.of(index) for found in self.results], (height, width))


def read_results(
    path: Path, annotations: CocoAnnotations, top_k: int | None = None, min_score: float = 0.0
) -> TeacherResults:
    """Read one file; boxes are clipped to their image, and those without area are dropped. Raises
    UserError as ``TeacherBoxes``.
    """
    named_ids, entries = _entries(path)
    index_of = {image_id: i for i, image_id in enumerate(annotations.image_ids)}
    named = torch.tensor([image_id in named_ids for image_id in annotations.image_ids])
    if not named.any():
        raise UserError(
            f"{path}: has results for none of the images of {annotations.path}: give the results "
            "on the training split"
        )
    used = [(index_of[image_id], result) for image_id, result in entries if image_id in index_of]
    images, boxes = _columns(used, annotations, path)
    size_whwh = annotations.sizes.flip(1)[images].repeat(1, 2)
    corners = torch.minimum(boxes.boxes.clamp(min=0), size_whwh.to(boxes.boxes.dtype))
    keep = (corners[:, 2:] > corners[:, :2]).all(dim=1) & (boxes.scores >= min_score)
    order = boxes.scores.argsort(descending=True, stable=True)
    order = order[keep[order]]
    order = order[images[order].argsort(stable=True)]
    counts = torch.bincount(images[order], minlength=len(annotations))
    if top_k is not None:
        starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        order = order[torch.arange(len(order)) - starts < top_k]
        counts = counts.clamp(max=top_k)
    chosen = replace(boxes, boxes=corners).select(order)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return TeacherResults(boxes=chosen, offsets=offsets, named=named)


def _entries(path: Path) -> tuple[set[int], Iterable[Entry]]:
    """The ids of the images in the file, and its results."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the teacher's boxes {path} ({error.strerror}): give result files in "
            "data.teachers; codetr-teacher-boxes writes them"
        ) from None
    content = parse_json(text, str(path))
    try:
        if isinstance(content, dict):
            by_image = {_number(image_id): results for image_id, results in content.items()}
            return set(by_image), [(i, r) for i, results in by_image.items() for r in results]
        pairs = [(_number(result["image_id"]), result) for result in content]
        return {image_id for image_id, _ in pairs}, pairs
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: contains no COCO results: each needs image_id, category_id, bbox and score, "
            "in a list, or in lists by image id"
        ) from None


def _number(image_id: Any) -> int:
    """The id of an image as a number. Raises ValueError for invalid ids."""
    number = as_identifier(image_id)
    if number is None:
        raise ValueError(image_id)
    return number


def _columns(
    results: Sequence[Entry], annotations: CocoAnnotations, path: Path
) -> tuple[Tensor, BoxSet]:
    """(R,) image indices, and the boxes (xyxy px, not clipped) of all results."""
    label_of = annotations.classes.index()
    try:
        images = torch.tensor([image for image, _ in results], dtype=torch.int64)
        rows = [result["bbox"] for _, result in results]
        scores = torch.tensor([result["score"] for _, result in results], dtype=torch.float32)
        scores = scores.reshape(len(results))  # torch accepts nested empty lists
        xywh = torch.tensor(rows, dtype=torch.float64).reshape(len(results), 4)
        categories = [result["category_id"] for _, result in results]
        unknown = [category for category in categories if category not in label_of]
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(
            f"{path}: a result lacks category_id, a bbox of four numbers or a score: correct it"
        ) from None
    if unknown:
        raise UserError(
            f"{path}: has category {reprlib.repr(unknown[0])}, which {annotations.path} does "
            "not have: give results of a teacher with the same category ids"
        )
    if not (xywh.isfinite().all() and scores.isfinite().all()):
        raise UserError(f"{path}: has a box or a score that is not finite: correct it")
    corners = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1).float()
    labels = torch.tensor([label_of[c] for c in categories], dtype=torch.int64)
    return images, BoxSet(boxes=corners, labels=labels, scores=scores)
